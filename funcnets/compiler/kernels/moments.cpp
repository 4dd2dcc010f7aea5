// Mean and biased variance of each channel, sums over all dimensions but the channels, and feature maps
// scaled and shifted by channel.
//
// Feature maps are NCHW, as (images, channels, pixels), or NHWC, as rows of channels (rows, channels).
// They are read once, block by block: within a block numbers are summed in Real, the blocks in double.
// The order of the sums does not depend on the number of threads.
//
// Before this text stands vectors.hpp.

constexpr long ROWS_PER_BLOCK = 64;
constexpr int MAX_VECTORS = 8;             // of channels in a block
constexpr long MAX_PARTS = 32;             // of the rows, of at least two blocks, summed apart
constexpr long MAX_SERIAL_SIZE = 1 << 15;  // numbers up to which one thread does all

typedef double DoubleVector __attribute__((vector_size(LANES * sizeof(double))));

static inline DoubleVector to_double(Vector x) { return __builtin_convertvector(x, DoubleVector); }

// Mean and sum of squared deviations of `count` numbers.  `Number` is double for one channel, or
// DoubleVector for a vector of channels.  `add` is from Chan, Golub and LeVeque, 1979, "Updating formulae
// and a pairwise algorithm for computing sample variances".
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

// Moments of `count` numbers, from the squared deviations from the mean as it was rounded to Real.
template <class Number>
static inline Moments<Number> around(double count, Number mean, Number rounded, Number squares) {
    const Number error = mean - rounded;
    return {count, mean, squares - error * error * count};
}

template <class Number>
struct ProductSums {
    Number products, sum;
    void add(const ProductSums& other) {
        products += other.products;
        sum += other.sum;
    }
    ProductSums<double> of_lane(int lane) const { return {products[lane], sum[lane]}; }
};

template <class Number>
struct Sum {
    Number sum;
    void add(const Sum& other) { sum += other.sum; }
    Sum<double> of_lane(int lane) const { return {sum[lane]}; }
};

// Sums of numbers are of their differences from a first one, as they lose digits where a mean is large beside
// the deviations.  So the mean of equal numbers is exact; that of bfloat16, which have few digits, is anyway.
constexpr bool IS_SHIFTED = !std::is_same_v<Stored, bfloat16>;

// Adds a block of rows to the results of `vectors` neighbouring vectors of channels; `count` channels are
// in the last one, and rows are `stride` numbers apart.
template <class Vectors>
static inline void add_block(long rows, long stride, Vectors vectors, long count,
                             Moments<DoubleVector>* result, const Stored* x) {
    Vector sum[vectors] = {}, squares[vectors] = {}, first[vectors] = {}, mean[vectors];
    for (int v = 0; v < vectors; ++v)
        if (IS_SHIFTED) first[v] = load(x + v * LANES, count);
    for (long i = 0; i < rows; ++i)
        for (int v = 0; v < vectors; ++v) sum[v] += load(x + i * stride + v * LANES, count) - first[v];
    for (int v = 0; v < vectors; ++v) mean[v] = first[v] + sum[v] / Real(rows);
    for (long i = 0; i < rows; ++i)
        for (int v = 0; v < vectors; ++v) {
            const Vector difference = load(x + i * stride + v * LANES, count) - mean[v];
            squares[v] += difference * difference;
        }
    for (int v = 0; v < vectors; ++v) {
        const DoubleVector exact = to_double(first[v]) + to_double(sum[v]) / double(rows);
        result[v].add(around(double(rows), exact, to_double(mean[v]), to_double(squares[v])));
    }
}

template <class Vectors>
static inline void add_block(long rows, long stride, Vectors vectors, long count,
                             ProductSums<DoubleVector>* result, const Stored* grad, const Stored* x,
                             const Real* center) {
    Vector products[vectors] = {}, sum[vectors] = {}, from[vectors] = {};
    for (int v = 0; v < vectors; ++v)
        if (center) from[v] = load_lanes<Vector>(center + v * LANES, count);
    for (long i = 0; i < rows; ++i)
        for (int v = 0; v < vectors; ++v) {
            const Vector factor = load(grad + i * stride + v * LANES, count);
            products[v] += factor * (load(x + i * stride + v * LANES, count) - from[v]);
            sum[v] += factor;
        }
    for (int v = 0; v < vectors; ++v) result[v].add({to_double(products[v]), to_double(sum[v])});
}

template <class Vectors>
static inline void add_block(long rows, long stride, Vectors vectors, long count,
                             Sum<DoubleVector>* result, const Stored* x) {
    Vector sum[vectors] = {};
    for (long i = 0; i < rows; ++i)
        for (int v = 0; v < vectors; ++v) sum[v] += load(x + i * stride + v * LANES, count);
    for (int v = 0; v < vectors; ++v) result[v].add({to_double(sum[v])});
}

// Adds a plane of an NCHW map, `count` contiguous numbers, to the result of its channel.
static inline void add_plane(const Stored* x, long count, Moments<double>& result) {
    Real sum = 0, squares = 0;
    const Real first = IS_SHIFTED ? to_real(x[0]) : 0;
#pragma omp simd reduction(+ : sum)
    for (long i = 0; i < count; ++i) sum += to_real(x[i]) - first;
    const Real mean = first + sum / count;
#pragma omp simd reduction(+ : squares)
    for (long i = 0; i < count; ++i)
        squares += (to_real(x[i]) - mean) * (to_real(x[i]) - mean);
    const double exact = double(first) + double(sum) / count;
    result.add(around(double(count), exact, double(mean), double(squares)));
}

static inline void add_plane(const Stored* grad, const Stored* x, const Real* center, long count,
                             ProductSums<double>& result) {
    const Real from = center ? *center : 0;
    Real products = 0, sum = 0;
#pragma omp simd reduction(+ : products, sum)
    for (long i = 0; i < count; ++i) {
        products += to_real(grad[i]) * (to_real(x[i]) - from);
        sum += to_real(grad[i]);
    }
    result.add({products, sum});
}

static inline void add_plane(const Stored* x, long count, Sum<double>& result) {
    Real sum = 0;
#pragma omp simd reduction(+ : sum)
    for (long i = 0; i < count; ++i) sum += to_real(x[i]);
    result.add({sum});
}

// NHWC maps have `pixels` 0 and are `images` rows.
struct Sizes {
    long images, channels, pixels;
};

// One number for each channel, which stands beside maps; maybe null.
struct ByChannel {
    const Real* numbers;
};

// Where a plane of a map begins, or the numbers from a channel on.
static inline const Stored* at(const Stored* map, long offset, long) { return map + offset; }
static inline const Real* at(ByChannel x, long, long channel) {
    return x.numbers ? x.numbers + channel : nullptr;
}

template <template <class> class Result, class Take, class... Maps>
static void reduce_planes(const Sizes& s, Take take, Maps... maps) {
#pragma omp parallel for if (s.images * s.channels * s.pixels > MAX_SERIAL_SIZE)
    for (long c = 0; c < s.channels; ++c) {
        Result<double> result = {};
        for (long n = 0; n < s.images; ++n)
            add_plane(at(maps, (n * s.channels + c) * s.pixels, c)..., s.pixels, result);
        take(c, result);
    }
}

template <template <class> class Result, class Take, class... Maps>
static void reduce_rows(long rows, long channels, Take take, Maps... maps) {
    const long parts = max(1l, min(MAX_PARTS, rows / (2 * ROWS_PER_BLOCK)));
    const long vectors = (channels + LANES - 1) / LANES;
    const Buffer<Result<DoubleVector>> results(parts * vectors, Result<DoubleVector>());
#pragma omp parallel for if (rows * channels > MAX_SERIAL_SIZE)
    for (long part = 0; part < parts; ++part) {
        const long end = (part + 1) * rows / parts;
        for (long row = part * rows / parts; row < end; row += ROWS_PER_BLOCK)
            for_vectors<MAX_VECTORS>(channels, [&](long first, auto count_of_vectors, auto count) {
                add_block(min(ROWS_PER_BLOCK, end - row), channels, count_of_vectors, count,
                          results.data + part * vectors + first / LANES,
                          at(maps, row * channels + first, first)...);
            });
    }
    for (long i = vectors; i < parts * vectors; ++i) results.data[i % vectors].add(results.data[i]);
    for (long c = 0; c < channels; ++c) take(c, results.data[c / LANES].of_lane(c % LANES));
}

// Calls `take(channel, result)` for each channel.
template <template <class> class Result, class Take, class... Maps>
static void reduce(const Sizes& s, Take take, Maps... maps) {
    if (s.pixels) reduce_planes<Result>(s, take, maps...);
    else reduce_rows<Result>(s.images, s.channels, take, maps...);
}

extern "C" void moments(const Stored* x, Real* mean, Real* variance, const Sizes& s) {
    const auto take = [=](long c, const Moments<double>& all) {
        mean[c] = all.mean;
        variance[c] = all.squares / all.count;
    };
    reduce<Moments>(s, take, x);
}

// Sums of grad·(x - center) and of grad; of grad·x where `center` is null.
extern "C" void product_sums(const Stored* grad, const Stored* x, const Real* center, Real* products,
                             Real* sums, const Sizes& s) {
    const auto take = [=](long c, const ProductSums<double>& all) {
        products[c] = all.products;
        sums[c] = all.sum;
    };
    reduce<ProductSums>(s, take, grad, x, ByChannel{center});
}

#ifdef STORED_bfloat16  // ATen sums other types fast enough, and this takes time to compile
extern "C" void sum(const Stored* x, Stored* sum, const Sizes& s) {
    reduce<Sum>(s, [=](long c, const Sum<double>& all) { sum[c] = to_stored<Stored>(all.sum); }, x);
}
#endif

// x·scale + shift by channel; x·scale where `shift` is null.
extern "C" void scale_and_shift(const Stored* x, const Real* scale, const Real* shift, Stored* y,
                                const Sizes& s) {
    const long rows = s.pixels ? s.images * s.channels : s.images;
    const long length = s.pixels ? s.pixels : s.channels, step = s.pixels ? 0 : 1;
#pragma omp parallel for if (rows * length > MAX_SERIAL_SIZE)
    for (long row = 0; row < rows; ++row) {
        const long channel = s.pixels ? row % s.channels : 0;
        const Real *factor = scale + channel, *term = shift ? shift + channel : nullptr;
        for (long i = 0; i < length; ++i) {
            const Real product = to_real(x[row * length + i]) * factor[i * step];
            y[row * length + i] = to_stored<Stored>(term ? product + term[i * step] : product);
        }
    }
}
