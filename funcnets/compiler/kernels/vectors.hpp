// Vectors of numbers in a register's type, which are read from memory's type and written to it.
//
// Before this text stand the types Stored, in memory, and Real, in registers; where the first is
// bfloat16, STORED_bfloat16 is defined.

#if defined(__AVX512BF16__) && defined(STORED_bfloat16)
#define HAS_BFLOAT16
#include <immintrin.h>  // which takes a compiler as long as a kernel
#endif

#ifdef __AVX512F__
constexpr int BYTES = 64;
#else
constexpr int BYTES = 32;
#endif
constexpr int LANES = BYTES / sizeof(Real);
constexpr bool IS_NARROW = std::is_same_v<Stored, bfloat16>;
typedef Real Vector __attribute__((vector_size(BYTES)));
typedef std::uint32_t Bits __attribute__((vector_size(BYTES)));
typedef bfloat16 Half __attribute__((vector_size(BYTES / 2)));

// Of a vector's lanes the first `count` are in memory; others are read as zeros.
template <class V>
static inline V read(const void* from, long count = LANES) {
    V x = {};
    if (count >= LANES) std::memcpy(&x, from, sizeof x);
    else std::memcpy(&x, from, count * (sizeof x / LANES));
    return x;
}

template <class V>
static inline void write(void* to, V x, long count = LANES) {
    if (count >= LANES) std::memcpy(to, &x, sizeof x);
    else std::memcpy(to, &x, count * (sizeof x / LANES));
}

// To the nearest, and between two to the even one.
static inline Half narrow(Vector x) {
#ifdef HAS_BFLOAT16
    return (Half)_mm512_cvtneps_pbh((__m512)x);
#endif
    const Bits bits = (Bits)x, nearest = bits + 0x7fff + (bits >> 16 & 1);
    const Bits shifted = nearest >> 16, is_number = (Bits)(x == x);
    return __builtin_convertvector((shifted & is_number) | (0x7fc0 & ~is_number), Half);
}

static inline Bits widen(Half x) {
#ifdef HAS_BFLOAT16
    return (Bits)_mm512_cvtepu16_epi32((__m256i)x);  // GCC would take two halves, and join them
#endif
    return __builtin_convertvector(x, Bits);
}

static inline Vector load(const Stored* from, long count = LANES) {
    if constexpr (IS_NARROW) return (Vector)(widen(read<Half>(from, count)) << 16);
    else return read<Vector>(from, count);
}

static inline void store(Stored* to, Vector x, long count = LANES) {
    if constexpr (IS_NARROW) write(to, narrow(x), count);
    else write(to, x, count);
}

// Calls with the first of some channels, how many vectors they are, and how many are in each: WIDE
// full ones, as constants, then half as many, but no less than four, and in the end one at a time.
template <int WIDE, class F>
static inline void in_vectors(long channels, F call, long first = 0) {
    if constexpr (WIDE > 1) {
        for (; channels - first >= WIDE * LANES; first += WIDE * LANES)
            call(first, std::integral_constant<int, WIDE>(), std::integral_constant<int, LANES>());
        in_vectors<(WIDE > 4 ? WIDE / 2 : 1)>(channels, call, first);
    } else {
        for (; first < channels; first += LANES)
            call(first, std::integral_constant<int, 1>(), min<long>(LANES, channels - first));
    }
}
