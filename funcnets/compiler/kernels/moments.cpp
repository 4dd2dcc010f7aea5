// Mean and biased variance of each channel of maps, sums over all but the channels, and maps that are
// scaled and shifted by channel.
//
// Maps are plain (images, channels, pixels), or rows of channels (rows, channels), as channels_last
// ones are.  They are read once, block by block: within a block numbers are added up in their own
// type, bfloat16 as float, and the blocks as doubles.  No number of threads changes the order.
//
// Before this text stands vectors.hpp.

constexpr long ROWS = 64;          // of a block
constexpr int WIDE = 8;            // vectors of channels of a block, at most
constexpr long MOST_PARTS = 32;    // of the rows, summed apart, of two blocks at least
constexpr long LONGEST = 1 << 15;  // numbers that one thread takes alone

typedef double Doubles __attribute__((vector_size(LANES * sizeof(double))));

static inline Doubles doubles(Vector x) { return __builtin_convertvector(x, Doubles); }

// Of `count` numbers, each; `Number` is that of one channel, or Doubles of a vector of them.  Chan,
// Golub and LeVeque, 1979, "Updating formulae and a pairwise algorithm for computing sample variances".
template <class Number>
struct Moments {
    double count;
    Number mean, squares;
    void add(const Moments& other) {
        const double share = other.count / (count + other.count);
        const Number difference = other.mean - mean;
        squares += other.squares + difference * difference * (count * share);
        mean += difference * share;
        count += other.count;
    }
    Moments<double> of_lane(int lane) const { return {count, mean[lane], squares[lane]}; }
};

template <class Number>
struct Sums {
    Number products, sum;
    void add(const Sums& other) {
        products += other.products;
        sum += other.sum;
    }
    Sums<double> of_lane(int lane) const { return {products[lane], sum[lane]}; }
};

template <class Number>
struct Sum {
    Number sum;
    void add(const Sum& other) { sum += other.sum; }
    Sum<double> of_lane(int lane) const { return {sum[lane]}; }
};

// What rows add to the results of `wide` vectors of channels beside each other, `count` in the last.
template <class Wide>
static inline void of_block(long rows, long apart, Wide wide, long count, Moments<Doubles>* result,
                            const Stored* x) {
    Vector sum[wide] = {}, squares[wide] = {}, mean[wide];
    for (long i = 0; i < rows; ++i)
        for (int v = 0; v < wide; ++v) sum[v] += load(x + i * apart + v * LANES, count);
    for (int v = 0; v < wide; ++v) mean[v] = sum[v] / Real(rows);
    for (long i = 0; i < rows; ++i)
        for (int v = 0; v < wide; ++v) {
            const Vector difference = load(x + i * apart + v * LANES, count) - mean[v];
            squares[v] += difference * difference;
        }
    for (int v = 0; v < wide; ++v)
        result[v].add({double(rows), doubles(sum[v]) / double(rows), doubles(squares[v])});
}

template <class Wide>
static inline void of_block(long rows, long apart, Wide wide, long count, Sums<Doubles>* result,
                            const Stored* g, const Stored* x) {
    Vector products[wide] = {}, sum[wide] = {};
    for (long i = 0; i < rows; ++i)
        for (int v = 0; v < wide; ++v) {
            const Vector factor = load(g + i * apart + v * LANES, count);
            products[v] += factor * load(x + i * apart + v * LANES, count);
            sum[v] += factor;
        }
    for (int v = 0; v < wide; ++v) result[v].add({doubles(products[v]), doubles(sum[v])});
}

template <class Wide>
static inline void of_block(long rows, long apart, Wide wide, long count, Sum<Doubles>* result,
                            const Stored* x) {
    Vector sum[wide] = {};
    for (long i = 0; i < rows; ++i)
        for (int v = 0; v < wide; ++v) sum[v] += load(x + i * apart + v * LANES, count);
    for (int v = 0; v < wide; ++v) result[v].add({doubles(sum[v])});
}

// The same of a plane, whose numbers follow each other.
static inline void of_plane(const Stored* x, long count, Moments<double>& result) {
    Real sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
    for (long i = 0; i < count; ++i) sum += computed(x[i]);
    const Real mean = sum / count;
#pragma omp simd reduction(+ : squares)
    for (long i = 0; i < count; ++i)
        squares += (computed(x[i]) - mean) * (computed(x[i]) - mean);
    result.add({double(count), double(sum) / count, squares});
}

static inline void of_plane(const Stored* g, const Stored* x, long count, Sums<double>& result) {
    Real products = 0, sum = 0;
#pragma omp simd reduction(+ : products, sum)
    for (long i = 0; i < count; ++i) {
        products += computed(g[i]) * computed(x[i]);
        sum += computed(g[i]);
    }
    result.add({products, sum});
}

static inline void of_plane(const Stored* x, long count, Sum<double>& result) {
    Real sum = 0;
#pragma omp simd reduction(+ : sum)
    for (long i = 0; i < count; ++i) sum += computed(x[i]);
    result.add({sum});
}

// With `pixels` 0 the maps are `images` rows.
struct Sizes {
    long images, channels, pixels;
};

template <template <class> class Result, class Take, class... Maps>
static void over_planes(const Sizes& s, Take take, Maps... maps) {
#pragma omp parallel for if (s.images * s.channels * s.pixels > LONGEST)
    for (long c = 0; c < s.channels; ++c) {
        Result<double> result = {};
        for (long n = 0; n < s.images; ++n)
            of_plane(maps + (n * s.channels + c) * s.pixels..., s.pixels, result);
        take(c, result);
    }
}

template <template <class> class Result, class Take, class... Maps>
static void over_rows(long rows, long channels, Take take, Maps... maps) {
    const long parts = max(1l, min(MOST_PARTS, rows / (2 * ROWS)));
    const long vectors = (channels + LANES - 1) / LANES;
    const Memory<Result<Doubles>> results(parts * vectors, Result<Doubles>());
#pragma omp parallel for if (rows * channels > LONGEST)
    for (long part = 0; part < parts; ++part) {
        const long end = (part + 1) * rows / parts;
        for (long row = part * rows / parts; row < end; row += ROWS)
            in_vectors<WIDE>(channels, [&](long first, auto wide, auto count) {
                of_block(min(ROWS, end - row), channels, wide, count,
                         results.at + part * vectors + first / LANES,
                         maps + row * channels + first...);
            });
    }
    for (long i = vectors; i < parts * vectors; ++i) results.at[i % vectors].add(results.at[i]);
    for (long c = 0; c < channels; ++c) take(c, results.at[c / LANES].of_lane(c % LANES));
}

// Gives `take` each channel and its result.
template <template <class> class Result, class Take, class... Maps>
static void over_all(const Sizes& s, Take take, Maps... maps) {
    if (s.pixels) over_planes<Result>(s, take, maps...);
    else over_rows<Result>(s.images, s.channels, take, maps...);
}

extern "C" void moments(const Stored* x, Real* mean, Real* variance, const Sizes& s) {
    const auto take = [=](long c, const Moments<double>& all) {
        mean[c] = all.mean;
        variance[c] = all.squares / all.count;
    };
    over_all<Moments>(s, take, x);
}

extern "C" void sums(const Stored* g, const Stored* x, Real* products, Real* sums, const Sizes& s) {
    const auto take = [=](long c, const Sums<double>& all) {
        products[c] = all.products;
        sums[c] = all.sum;
    };
    over_all<Sums>(s, take, g, x);
}

#ifdef STORED_bfloat16  // others are left to ATen, and the compiler's time is dear
extern "C" void sum(const Stored* x, Stored* sum, const Sizes& s) {
    over_all<Sum>(s, [=](long c, const Sum<double>& all) { sum[c] = stored<Stored>(all.sum); }, x);
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
