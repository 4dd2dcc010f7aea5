// What the loops of a graph are called by, and what they need.
//
// Before this text stand numbers.hpp and DEPTH, how many loops are in each other.

// In place of <cmath>, which a compiler takes longer to read than all of this.
static inline float root(float x) { return __builtin_sqrtf(x); }
static inline double root(double x) { return __builtin_sqrt(x); }
static inline float rounded_down(float x) { return __builtin_floorf(x); }
static inline double rounded_down(double x) { return __builtin_floor(x); }

static constexpr double one_by_factorial(int n) { return n ? one_by_factorial(n - 1) / n : 1; }

// The C library's exponential takes one number at a time.  This is Taylor's series about the nearest
// n·log 2, to half a unit or so in the last place; below the smallest normal number it is 0.
template <class T>
static inline T exponential(T x) {
    using Limits = std::numeric_limits<T>;
    using Bits = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
    constexpr int digits = Limits::digits - 1, most = Limits::max_exponent;
    constexpr T log2 = 0.693147180559945309417232L, high = T(0.693145751953125);
    constexpr T low = 0.693147180559945309417232L - 0.693145751953125L;
    x = x > most * log2 ? most * log2 : x < -most * log2 ? -most * log2 : x;
    const T n = rounded_down(x * (1 / log2) + T(0.5)), rest = (x - n * high) - n * low;
    T y = 0;
#pragma GCC unroll 14
    for (int i = sizeof(T) == 4 ? 7 : 13; i >= 0; --i) y = T(one_by_factorial(i)) + y * rest;
    const Bits bits = Bits(max<Bits>(Bits(n) + most - 1, 0)) << digits;
    T power;
    std::memcpy(&power, &bits, sizeof power);
    return y * power;
}

// The function of a run, and the first of its operands and results among those of all.
struct Part {
    void (*function)(void** at, const long* size, const long* stride);
    long first;
};

// Runs of which none reads what another writes.
struct Call {
    const Part* parts;
    long count;
    bool many;                           // numbers, so that it takes more than one thread
    const long *places, *size, *stride;  // of each run's operands and results in what is given
};

extern "C" void call(const Call& all, void** given) {
    const auto run = [&](long i) {
        const long first = all.parts[i].first, end = all.parts[i + 1].first;
        const Memory<void*> places(end - first);
        for (long k = first; k < end; ++k) places.at[k - first] = given[all.places[k]];
        all.parts[i].function(places.at, all.size + i * DEPTH, all.stride + first * DEPTH);
    };
    if (all.many && all.count > 1) {
#pragma omp parallel for schedule(dynamic)
        for (long i = 0; i < all.count; ++i) run(i);
    } else {
        // Not in a region of one thread, in which those of a run would be started anew.
        for (long i = 0; i < all.count; ++i) run(i);
    }
}
