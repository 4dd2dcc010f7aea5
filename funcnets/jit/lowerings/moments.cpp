// Mean and biased variance of each channel of maps, sums over all but the channels, and maps that are
// scaled and shifted by channel.
//
// Maps are plain (images, channels, pixels), or rows of channels (rows, channels), as channels_last
// ones are.  They are read once, block by block: within a block numbers are added up in their own
// type, bfloat16 as float, and the blocks as doubles.  No number of threads changes the order.
//
// Before this text stand the types Stored, in memory, and Real, in registers.

#include <vector>

constexpr long ROWS = 64;          // of a block
constexpr long MOST_PARTS = 32;    // of the rows, summed apart, of two blocks at least
constexpr long LONGEST = 1 << 15;  // numbers that one thread takes alone

// Chan, Golub and LeVeque, 1979, "Updating formulae and a pairwise algorithm for computing sample
// variances".
struct Moments {
    double count = 0, mean = 0, squares = 0;
    void add(const Moments& other) {
        if (!other.count) return;
        const double sum = count + other.count, difference = other.mean - mean;
        squares += other.squares + difference * difference * count * (other.count / sum);
        mean += difference * (other.count / sum);
        count = sum;
    }
};

struct Sum {
    double sum = 0;
    void add(const Sum& other) { sum += other.sum; }
};

struct Sums {
    double products = 0, sum = 0;
    void add(const Sums& other) {
        products += other.products;
        sum += other.sum;
    }
};

// What a block of `WIDE` channels beside each other adds up to: `count` numbers each, `apart`.
template <int WIDE>
static inline void of_block(const Stored* x, long count, long apart, Moments* result) {
    Real sum[WIDE] = {}, squares[WIDE] = {}, mean[WIDE];
    for (long i = 0; i < count; ++i)
        for (int c = 0; c < WIDE; ++c) sum[c] += computed(x[i * apart + c]);
    for (int c = 0; c < WIDE; ++c) mean[c] = sum[c] / count;
    for (long i = 0; i < count; ++i)
        for (int c = 0; c < WIDE; ++c) {
            const Real difference = computed(x[i * apart + c]) - mean[c];
            squares[c] += difference * difference;
        }
    for (int c = 0; c < WIDE; ++c)
        result[c].add({double(count), double(sum[c]) / count, squares[c]});
}

template <int WIDE>
static inline void of_block(const Stored* g, const Stored* x, long count, long apart, Sums* result) {
    Real products[WIDE] = {}, sum[WIDE] = {};
    for (long i = 0; i < count; ++i)
        for (int c = 0; c < WIDE; ++c) {
            const Real factor = computed(g[i * apart + c]);
            products[c] += factor * computed(x[i * apart + c]);
            sum[c] += factor;
        }
    for (int c = 0; c < WIDE; ++c) result[c].add({products[c], sum[c]});
}

template <int WIDE>
static inline void of_block(const Stored* x, long count, long apart, Sum* result) {
    Real sum[WIDE] = {};
    for (long i = 0; i < count; ++i)
        for (int c = 0; c < WIDE; ++c) sum[c] += computed(x[i * apart + c]);
    for (int c = 0; c < WIDE; ++c) result[c].add({sum[c]});
}

// The same of a plane, whose numbers follow each other.
static inline void of_plane(const Stored* x, long count, Moments& result) {
    Real sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
    for (long i = 0; i < count; ++i) sum += computed(x[i]);
    const Real mean = sum / count;
#pragma omp simd reduction(+ : squares)
    for (long i = 0; i < count; ++i)
        squares += (computed(x[i]) - mean) * (computed(x[i]) - mean);
    result.add({double(count), double(sum) / count, squares});
}

static inline void of_plane(const Stored* g, const Stored* x, long count, Sums& result) {
    Real products = 0, sum = 0;
#pragma omp simd reduction(+ : products, sum)
    for (long i = 0; i < count; ++i) {
        products += computed(g[i]) * computed(x[i]);
        sum += computed(g[i]);
    }
    result.add({products, sum});
}

static inline void of_plane(const Stored* x, long count, Sum& result) {
    Real sum = 0;
#pragma omp simd reduction(+ : sum)
    for (long i = 0; i < count; ++i) sum += computed(x[i]);
    result.add({sum});
}

template <class Result, class... Maps>
static std::vector<Result> over_planes(long images, long channels, long pixels, Maps... maps) {
    std::vector<Result> results(channels);
#pragma omp parallel for if (images * channels * pixels > LONGEST)
    for (long c = 0; c < channels; ++c)
        for (long n = 0; n < images; ++n)
            of_plane(maps + (n * channels + c) * pixels..., pixels, results[c]);
    return results;
}

// A block of rows, WIDE channels at a time, and the rest in smaller steps.
template <int WIDE, class Result, class... Maps>
static inline void across(long rows, long channels, long first, Result* results, Maps... maps) {
    for (; first + WIDE <= channels; first += WIDE)
        of_block<WIDE>(maps + first..., rows, channels, results + first);
    constexpr int NEXT = WIDE > 16 ? WIDE / 2 : WIDE / 4;
    if constexpr (NEXT) across<NEXT>(rows, channels, first, results, maps...);
}

template <class Result, class... Maps>
static std::vector<Result> over_rows(long rows, long channels, Maps... maps) {
    const long parts = std::clamp(rows / (2 * ROWS), 1l, MOST_PARTS);
    std::vector<Result> results(parts * channels);
#pragma omp parallel for if (rows * channels > LONGEST)
    for (long part = 0; part < parts; ++part) {
        const long end = (part + 1) * rows / parts;
        for (long row = part * rows / parts; row < end; row += ROWS)
            across<64>(std::min(ROWS, end - row), channels, 0, &results[part * channels],
                       maps + row * channels...);
    }
    for (long i = channels; i < parts * channels; ++i) results[i % channels].add(results[i]);
    return results;
}

// With `pixels` 0 the maps are `images` rows.
struct Sizes {
    long images, channels, pixels;
};

template <class Result, class... Maps>
static std::vector<Result> over_all(const Sizes& s, Maps... maps) {
    if (!s.pixels) return over_rows<Result>(s.images, s.channels, maps...);
    return over_planes<Result>(s.images, s.channels, s.pixels, maps...);
}

extern "C" void moments(const Stored* x, Real* mean, Real* variance, const Sizes& s) {
    const auto all = over_all<Moments>(s, x);
    for (long c = 0; c < s.channels; ++c) {
        mean[c] = all[c].mean;
        variance[c] = all[c].squares / all[c].count;
    }
}

extern "C" void sums(const Stored* g, const Stored* x, Real* products, Real* sums, const Sizes& s) {
    const auto all = over_all<Sums>(s, g, x);
    for (long c = 0; c < s.channels; ++c) {
        products[c] = all[c].products;
        sums[c] = all[c].sum;
    }
}

#ifdef STORED_bfloat16  // others are left to ATen, and the compiler's time is dear
extern "C" void sum(const Stored* x, Stored* sum, const Sizes& s) {
    const auto all = over_all<Sum>(s, x);
    for (long c = 0; c < s.channels; ++c) sum[c] = stored<Stored>(all[c].sum);
}
#endif

// Channel by channel x·scale + shift, or without the shift.
extern "C" void scaled(const Stored* x, const Real* scale, const Real* shift, Stored* y,
                       const Sizes& s) {
    const long rows = s.pixels ? s.images * s.channels : s.images;
    const long length = s.pixels ? s.pixels : s.channels, apart = s.pixels ? 0 : 1;
#pragma omp parallel for if (rows * length > LONGEST)
    for (long row = 0; row < rows; ++row) {
        const long first = s.pixels ? row % s.channels : 0;
        const Real *by = scale + first, *plus = shift ? shift + first : nullptr;
        for (long i = 0; i < length; ++i) {
            const Real product = computed(x[row * length + i]) * by[i * apart];
            y[row * length + i] = stored<Stored>(plus ? product + plus[i * apart] : product);
        }
    }
}
