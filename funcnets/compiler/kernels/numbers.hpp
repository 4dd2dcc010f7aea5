// Types of numbers in memory, and what they are in registers; stands before all other C++.
//
// What <algorithm> and <vector> would be used for stands here, as to read them takes a compiler a
// good part of a kernel's time.

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

// Memory for `count` of them, from where a line of the cache begins.
template <class T>
struct Memory {
    static constexpr std::align_val_t BEGIN{alignof(T) > 64 ? alignof(T) : 64};
    T* const at;
    explicit Memory(long count) : at((T*)::operator new(count * sizeof(T), BEGIN)) {}
    Memory(long count, T every) : Memory(count) {
        for (long i = 0; i < count; ++i) at[i] = every;
    }
    ~Memory() { ::operator delete(at, BEGIN); }
    Memory(const Memory&) = delete;
};

// The bits of it: as a class of its own it would keep the compiler from making vectors.
using bfloat16 = std::uint16_t;

// In a register's type.
template <class Stored>
static inline auto computed(Stored x) {
    if constexpr (std::is_same_v<Stored, bfloat16>) {
        const std::uint32_t bits = std::uint32_t(x) << 16;
        float y;
        std::memcpy(&y, &bits, sizeof y);
        return y;
    } else {
        return x;
    }
}

// So many numbers in a register's type: where they are, if that is theirs, or in `room`.
template <class Stored, class Real>
static inline const Real* computed(const Stored* from, Real* room, long count) {
    if constexpr (std::is_same_v<Stored, Real>) {
        return from;
    } else {
        for (long i = 0; i < count; ++i) room[i] = computed(from[i]);
        return room;
    }
}

// To what memory's type can hold: to the nearest, and between two to the even one.
template <class Stored, class T>
static inline auto rounded(T x) {
    decltype(computed(Stored())) y = x;
    if constexpr (std::is_same_v<Stored, bfloat16>) {
        std::uint32_t bits;
        std::memcpy(&bits, &y, sizeof bits);
        bits = y != y ? 0x7fc00000 : (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
        std::memcpy(&y, &bits, sizeof y);
    }
    return y;
}

// A number that is rounded already, in memory's type.
template <class Stored, class T>
static inline Stored kept(T x) {
    if constexpr (!std::is_same_v<Stored, bfloat16>) return x;
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits >> 16;
}

template <class Stored, class T>
static inline Stored stored(T x) {
    return kept<Stored>(rounded<Stored>(x));
}
