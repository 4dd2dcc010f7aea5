// Number types in memory and in registers.  This text stands before all other C++ of a kernel.
//
// A few lines stand in for <algorithm> and <vector>: reading those headers takes a compiler a large
// part of the time that it needs for a kernel.

#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>

template <class T>
static constexpr T min(T a, T b) {
    return b < a ? b : a;
}

template <class T>
static constexpr T max(T a, T b) {
    return a < b ? b : a;
}

// Memory for `count` numbers, aligned to a cache line.
template <class T>
struct Buffer {
    static constexpr std::align_val_t ALIGNMENT{alignof(T) > 64 ? alignof(T) : 64};
    T* const data;
    explicit Buffer(long count) : data((T*)::operator new(count * sizeof(T), ALIGNMENT)) {}
    Buffer(long count, T value) : Buffer(count) {
        for (long i = 0; i < count; ++i) data[i] = value;
    }
    ~Buffer() { ::operator delete(data, ALIGNMENT); }
    Buffer(const Buffer&) = delete;
};

// The bits of a bfloat16 number.  A class of its own would keep the compiler from vectorizing.
using bfloat16 = std::uint16_t;

// The number in the type that registers hold: float for bfloat16, else its own type.
template <class Stored>
static inline auto to_real(Stored x) {
    if constexpr (std::is_same_v<Stored, bfloat16>) {
        const std::uint32_t bits = std::uint32_t(x) << 16;
        float y;
        std::memcpy(&y, &bits, sizeof y);
        return y;
    } else {
        return x;
    }
}

// The same of `count` numbers.  Returns `from` itself where the types are equal, else `buffer`, which
// is filled.
template <class Stored, class Real>
static inline const Real* to_real(const Stored* from, Real* buffer, long count) {
    if constexpr (std::is_same_v<Stored, Real>) {
        return from;
    } else {
        for (long i = 0; i < count; ++i) buffer[i] = to_real(from[i]);
        return buffer;
    }
}

// The nearest number that `Stored` can hold (ties to even), still in the type of registers.
template <class Stored, class T>
static inline auto rounded(T x) {
    decltype(to_real(Stored())) y = x;
    if constexpr (std::is_same_v<Stored, bfloat16>) {
        std::uint32_t bits;
        std::memcpy(&bits, &y, sizeof bits);
        bits = y != y ? 0x7fc00000 : (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
        std::memcpy(&y, &bits, sizeof y);
    }
    return y;
}

// A number that `rounded` has returned, in the type of memory.
template <class Stored, class T>
static inline Stored to_stored_exact(T x) {
    if constexpr (!std::is_same_v<Stored, bfloat16>) return x;
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits >> 16;
}

// Any number, rounded, in the type of memory.
template <class Stored, class T>
static inline Stored to_stored(T x) {
    return to_stored_exact<Stored>(rounded<Stored>(x));
}
