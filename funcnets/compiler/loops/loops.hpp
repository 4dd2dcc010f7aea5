// Functions for fused element-wise loops, and the call that runs several of them.
//
// Before this text stand numbers.hpp and MAX_DEPTH, the number of nested loops.

// In place of <cmath>, which takes longer to compile than all of this.
static inline float square_root(float x) { return __builtin_sqrtf(x); }
static inline double square_root(double x) { return __builtin_sqrt(x); }
static inline float floor_of(float x) { return __builtin_floorf(x); }
static inline double floor_of(double x) { return __builtin_floor(x); }

// a·b + c, rounded once where the processor can.  Elsewhere in loops each operation rounds, as PyTorch's do.
static inline float multiply_add(float a, float b, float c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}
static inline double multiply_add(double a, double b, double c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    return __builtin_fma(a, b, c);
#else
    return a * b + c;
#endif
}

static constexpr double inverse_factorial(int n) { return n ? inverse_factorial(n - 1) / n : 1; }

// The exponential in a form that compilers vectorize, unlike the C library's: a Taylor series around the
// nearest n·log 2, with an error of about half a unit in the last place.  Below the smallest normal number
// it is 0.
template <class T>
static inline T exponential(T x) {
    using Limits = std::numeric_limits<T>;
    using Bits = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
    constexpr int digits = Limits::digits - 1, max_exponent = Limits::max_exponent;
    constexpr T log2 = 0.693147180559945309417232L, high = T(0.693145751953125);
    constexpr T low = 0.693147180559945309417232L - 0.693145751953125L;
    const T limit = max_exponent * log2;
    x = x > limit ? limit : x < -limit ? -limit : x;
    const T n = floor_of(multiply_add(x, 1 / log2, T(0.5)));
    const T rest = multiply_add(n, -low, multiply_add(n, -high, x));
    T y = 0;
#pragma GCC unroll 14
    for (int i = sizeof(T) == 4 ? 7 : 13; i >= 0; --i) y = multiply_add(y, rest, T(inverse_factorial(i)));
    const Bits bits = Bits(max<Bits>(Bits(n) + max_exponent - 1, 0)) << digits;
    T power;
    std::memcpy(&power, &bits, sizeof power);
    return y * power;
}

// A loop, and the index of the first of its pointers (operands, then results) among those of all loops.
struct Loop {
    void (*function)(void** pointers, const long* size, const long* stride);
    long first;
};

// Loops that run in one call.  None reads what another writes.
struct LoopGroup {
    const Loop* loops;
    long count;
    bool is_large;        // enough for several threads
    const long* indices;  // of each loop's pointers among the arguments of the call
    const long *size, *stride;
};

extern "C" void run_loops(const LoopGroup& group, void** arguments) {
    const auto run = [&](long i) {
        const long first = group.loops[i].first, end = group.loops[i + 1].first;
        const Buffer<void*> pointers(end - first);
        for (long k = first; k < end; ++k) pointers.data[k - first] = arguments[group.indices[k]];
        group.loops[i].function(pointers.data, group.size + i * MAX_DEPTH,
                                group.stride + first * MAX_DEPTH);
    };
    if (group.is_large && group.count > 1) {
#pragma omp parallel for schedule(dynamic)
        for (long i = 0; i < group.count; ++i) run(i);
    } else {
        // Not a parallel region of one thread: a loop in it would start a nested region each time.
        for (long i = 0; i < group.count; ++i) run(i);
    }
}
