// SIMD vectors of the register type Real, with loads from and stores to the memory type Stored.
//
// Before this text stand numbers.hpp and the types Stored and Real.  If Stored is bfloat16,
// STORED_bfloat16 is defined.

#if defined(__AVX512BF16__) && defined(STORED_bfloat16)
#define HAS_BFLOAT16
#include <immintrin.h>  // takes as long to compile as a kernel, so it is included only here
#endif

#ifdef __AVX512F__
constexpr int VECTOR_BYTES = 64;
#else
constexpr int VECTOR_BYTES = 32;
#endif
constexpr int LANES = VECTOR_BYTES / sizeof(Real);
constexpr bool IS_BFLOAT16 = std::is_same_v<Stored, bfloat16>;
typedef Real Vector __attribute__((vector_size(VECTOR_BYTES)));
typedef std::uint32_t BitsVector __attribute__((vector_size(VECTOR_BYTES)));
typedef bfloat16 Bfloat16Vector __attribute__((vector_size(VECTOR_BYTES / 2)));

// Loads the first `count` lanes of a vector; the other lanes are zero.
template <class V>
static inline V load_lanes(const void* from, long count = LANES) {
    V x = {};
    if (count >= LANES) std::memcpy(&x, from, sizeof x);
    else std::memcpy(&x, from, count * (sizeof x / LANES));
    return x;
}

// Stores the first `count` lanes of a vector.
template <class V>
static inline void store_lanes(void* to, V x, long count = LANES) {
    if (count >= LANES) std::memcpy(to, &x, sizeof x);
    else std::memcpy(to, &x, count * (sizeof x / LANES));
}

// Rounds to nearest, ties to even.
static inline Bfloat16Vector to_bfloat16(Vector x) {
#ifdef HAS_BFLOAT16
    return (Bfloat16Vector)_mm512_cvtneps_pbh((__m512)x);
#endif
    const BitsVector bits = (BitsVector)x, nearest = bits + 0x7fff + (bits >> 16 & 1);
    const BitsVector shifted = nearest >> 16, is_number = (BitsVector)(x == x);
    return __builtin_convertvector((shifted & is_number) | (0x7fc0 & ~is_number), Bfloat16Vector);
}

// The bits of bfloat16 numbers as 32-bit integers.
static inline BitsVector to_bits(Bfloat16Vector x) {
#ifdef HAS_BFLOAT16
    return (BitsVector)_mm512_cvtepu16_epi32((__m256i)x);  // GCC would convert two halves
#endif
    return __builtin_convertvector(x, BitsVector);
}

// Loads `count` numbers of memory into a vector; the other lanes are zero.
static inline Vector load(const Stored* from, long count = LANES) {
    if constexpr (IS_BFLOAT16) return (Vector)(to_bits(load_lanes<Bfloat16Vector>(from, count)) << 16);
    else return load_lanes<Vector>(from, count);
}

// Stores the first `count` lanes, rounded to the memory type.
static inline void store(Stored* to, Vector x, long count = LANES) {
    if constexpr (IS_BFLOAT16) store_lanes(to, to_bfloat16(x), count);
    else store_lanes(to, x, count);
}

// Calls `call(first, vectors, count)` for blocks of channels from `first` on, of `vectors` vectors (a
// constant) with `count` channels in each: blocks of MAX_VECTORS full vectors, then of half as many
// (but at least four), then single vectors, of which the last may be partly filled.
template <int MAX_VECTORS, class F>
static inline void for_vectors(long channels, F call, long first = 0) {
    if constexpr (MAX_VECTORS > 1) {
        constexpr std::integral_constant<int, MAX_VECTORS> vectors;
        for (; channels - first >= MAX_VECTORS * LANES; first += MAX_VECTORS * LANES)
            call(first, vectors, std::integral_constant<int, LANES>());
        for_vectors<(MAX_VECTORS > 4 ? MAX_VECTORS / 2 : 1)>(channels, call, first);
    } else {
        for (; first < channels; first += LANES)
            call(first, std::integral_constant<int, 1>(), min<long>(LANES, channels - first));
    }
}
