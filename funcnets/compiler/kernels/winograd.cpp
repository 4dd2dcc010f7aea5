// Winograd's convolutions of stride 1 on channels_last maps, and the gradient of their weight.
//
// Tiles are transformed, multiplied over channels and transformed back some at a time, so that what
// lies between stays in the processor's cache.  No number of threads changes a result.
//
// Before this text stand vectors.hpp, with the types Stored in memory and Real in registers and sums;
// Factor, the type of the products; SIDE, of a kernel;
// STEP, of a tile of outputs; TOGETHER, how many tiles of a convolution are in work at a time, and
// SUMMED, of a weight's gradient; and for each small matrix a struct with its sides (OUT rows, IN
// columns) and the product with IN vectors.

constexpr int ROWS = BYTES / 8;  // of a product, as many as registers can hold
constexpr int MOST = 3;  // vectors beside each other in a product, of ROWS rows
constexpr bool IN_PAIRS = std::is_same_v<Factor, bfloat16>;
constexpr int GROUP = IN_PAIRS ? 2 : 1;  // factors that one multiplication takes together
constexpr int TILE = STEP + SIDE - 1, AREA = TILE * TILE;

struct Sizes {
    long images, height, width, channels;  // of the input
    long out_height, out_width, outputs;
    long above, before;                             // padding
    long of_output, of_channel, of_row, of_column;  // strides of the weight
    long begin;                                     // where its first tap is
    long is_rectified;                              // the output: no number is below 0

    long down() const { return (out_height + STEP - 1) / STEP; }
    long across() const { return (out_width + STEP - 1) / STEP; }
    long tiles() const { return images * down() * across(); }
};

// A line of the cache, by which what follows each other is set off.
template <class T>
constexpr long LINE = 64 / sizeof(T);

static inline long vectors(long channels) { return (channels + LANES - 1) / LANES; }

// P x Pᵀ, where `given` gives a number of x, and `take` is given one of the result, row by row, so
// that little goes through memory.
template <class Matrix, class Given, class Take>
static inline void transform(Given given, Take take) {
    constexpr int OUT = Matrix::OUT, IN = Matrix::IN;
    Vector half[OUT * IN];
    for (int j = 0; j < IN; ++j) {
        Vector x[IN];
        for (int i = 0; i < IN; ++i) x[i] = given(i * IN + j);
        Matrix::times(x, 1, half + j, IN);
    }
    for (int i = 0; i < OUT; ++i) {
        Vector y[OUT];
        Matrix::times(half + i * IN, 1, y, 1);
        for (int j = 0; j < OUT; ++j) take(i * OUT + j, y[j]);
    }
}

// Where a tile's outputs begin.
struct Place {
    long image, top, left;
    Place(const Sizes& s, long tile)
        : image(tile / (s.down() * s.across())),
          top(tile / s.across() % s.down() * STEP),
          left(tile % s.across() * STEP) {}
};

// The pixels of a square of a map; of those outside, zeros.
template <int N>
struct Pixels {
    const Stored* at[N * N];
    Pixels(const Stored* image, long height, long width, long channels, long top, long left,
           const Stored* zeros) {
        for (int i = 0; i < N * N; ++i) {
            const long y = top + i / N, x = left + i % N;
            const bool inside = 0 <= y && y < height && 0 <= x && x < width;
            at[i] = inside ? image + (y * width + x) * channels : zeros;
        }
    }
};

// What a tile of outputs sees of the input.
static Pixels<TILE> seen(const Stored* x, const Sizes& s, long tile, const Stored* zeros) {
    const Place place(s, tile);
    const Stored* image = x + place.image * s.height * s.width * s.channels;
    const long top = place.top - s.above, left = place.left - s.before;
    return {image, s.height, s.width, s.channels, top, left, zeros};
}

// The tile's own pixels of a map of the outputs' size.
static Pixels<STEP> own(const Stored* y, const Sizes& s, long tile, const Stored* zeros) {
    const Place place(s, tile);
    const Stored* map = y + place.image * s.out_height * s.out_width * s.outputs;
    return {map, s.out_height, s.out_width, s.outputs, place.top, place.left, zeros};
}

// Transformed tiles: for each of AREA places (vectors of channels, tiles, LANES).
struct Factors {
    const long channels, tiles, apart;  // from one place to the next
    Memory<Factor> memory;
    Factors(long channels, long tiles)
        : channels(channels),
          tiles(tiles),
          apart(vectors(channels) * tiles * LANES + LINE<Factor>),
          memory(apart * AREA) {}
    Factor* at(int place, long vector, long tile) const {
        return memory.at + place * apart + (vector * tiles + tile) * LANES;
    }
};

// Transforms the v-th vector of channels of a tile; `take` is given each place and its number.
template <class Matrix, int N, class Take>
static inline void transform(const Pixels<N>& pixels, long channels, long v, Take take) {
    const long first = v * LANES;
    const auto given = [&](int i) { return load(pixels.at[i] + first, channels - first); };
    transform<Matrix>(given, take);
}

// Factors that are multiplied in pairs are pairs of channels.
template <class Matrix, int N>
static void write_tile(const Pixels<N>& pixels, const Factors& to, long tile) {
    for (long v = 0; v < vectors(to.channels); ++v)
        transform<Matrix>(pixels, to.channels, v, [&](int k, Vector y) {
            if constexpr (IN_PAIRS) write(to.at(k, v, tile), narrow(y));
            else write(to.at(k, v, tile), y);
        });
}

// The same of GROUP tiles beside each other, which are multiplied in pairs; an odd one by zeros.
template <class Matrix, class PixelsOf>
static void write_group(PixelsOf pixels, const Factors& to, long tile, long tiles) {
    const auto first = pixels(tile);
    if constexpr (!IN_PAIRS) {
        write_tile<Matrix>(first, to, tile);
    } else {
        const bool is_odd = tile + 1 == tiles;
        const auto second = pixels(is_odd ? tile : tile + 1);
        for (long v = 0; v < vectors(to.channels); ++v) {
            Half half[AREA];
            transform<Matrix>(first, to.channels, v, [&](int k, Vector y) { half[k] = narrow(y); });
            transform<Matrix>(second, to.channels, v, [&](int k, Vector y) {
                const Bits low = widen(half[k]);
                const Bits high = widen(narrow(y)) << 16;
                write(to.at(k, v, tile), is_odd ? low : low | high);
            });
        }
    }
}

// Adds to each lane the product of one factor, or of two, by those of the lane.
static inline void multiply_add(Vector& sum, const Factor* one, const Factor* of_lanes) {
    if constexpr (!IN_PAIRS) {
        sum += *one * read<Vector>(of_lanes);
    } else {
        const Bits pair = Bits{} + read<std::uint32_t>(one), pairs = read<Bits>(of_lanes);
#ifdef HAS_BFLOAT16
        sum = (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)pair, (__m512bh)pairs);
#else
        sum += (Vector)(pair << 16) * (Vector)(pairs << 16);
        sum += (Vector)(pair >> 16 << 16) * (Vector)(pairs >> 16 << 16);
#endif
    }
}

// Of ROWS tiles the products with WIDE vectors of outputs, over channels.  `kernels` are (channels /
// GROUP, WIDE, LANES, GROUP); the result is (tiles, WIDE, LANES).
template <int WIDE>
static void over_channels(const Factors& inputs, int place, long tile, const Factor* kernels,
                          Real* result) {
    Vector sum[ROWS][WIDE] = {};
    for (long v = 0; v < vectors(inputs.channels); ++v) {
        const Factor* tiles = inputs.at(place, v, tile);
        const long depth = min<long>(LANES, inputs.channels - v * LANES);
        for (long c = 0; c < depth; c += GROUP, kernels += WIDE * LANES * GROUP)
#pragma GCC unroll 8
            for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 4
                for (int w = 0; w < WIDE; ++w)
                    multiply_add(sum[row][w], tiles + row * LANES + c, kernels + w * LANES * GROUP);
    }
    std::memcpy(result, sum, sizeof sum);
}

// Of ROWS outputs, from a lane on, the products with WIDE vectors of channels, over tiles, are added
// to the rows of `result`; the first time there is nothing in it yet.
template <int WIDE>
static void over_tiles(const Factors& outputs, long output, const Factors& inputs, long vector,
                       int place, long tiles, Real* result, long row_length, bool is_first) {
    Vector sum[ROWS][WIDE] = {};
    const Factor* ones = outputs.at(place, output / LANES, 0) + output % LANES * GROUP;
    const Factor* lanes = inputs.at(place, vector, 0);
    const long beside = inputs.tiles * LANES;
    for (long t = 0; t < tiles; t += GROUP, ones += LANES * GROUP, lanes += LANES * GROUP)
#pragma GCC unroll 8
        for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 4
            for (int w = 0; w < WIDE; ++w)
                multiply_add(sum[row][w], ones + row * GROUP, lanes + w * beside);
    for (int row = 0; row < ROWS; ++row)
        for (int w = 0; w < WIDE; ++w) {
            Real* to = result + row * row_length + w * LANES;
            write(to, is_first ? sum[row][w] : read<Vector>(to) + sum[row][w]);
        }
}

// Vectors of channels in panels of 1 to MOST beside each other, as even as can be.
struct Panels {
    const long all, count;
    explicit Panels(long channels)
        : all(vectors(channels)), count((all + MOST - 1) / MOST) {}
    long begin(long panel) const { return panel * all / count; }
    int wide(long panel) const { return begin(panel + 1) - begin(panel); }
};

template <class F>
static inline void with_constant(int wide, F call) {
    if (wide == 1) call(std::integral_constant<int, 1>());
    if (wide == 2) call(std::integral_constant<int, 2>());
    if (wide == 3) call(std::integral_constant<int, 3>());
}

// Transformed kernels: for each of AREA places and each panel as `over_channels` takes them.
struct Kernels {
    const Panels panels;
    const long depth, apart;
    Memory<Factor> memory;
    Kernels(const Stored* weight, const Sizes& s)
        : panels(s.outputs),
          depth((s.channels + GROUP - 1) / GROUP * GROUP),
          apart(panels.all * LANES * depth + LINE<Factor>),
          memory(apart * AREA) {
#pragma omp parallel for collapse(2)
        for (long p = 0; p < panels.count; ++p)
            for (long c = 0; c < depth; ++c)
                for (int w = 0; w < panels.wide(p); ++w) write_vector(weight, s, p, c, w);
    }
    Factor* at(int place, long panel) const {
        return memory.at + place * apart + panels.begin(panel) * LANES * depth;
    }
    void write_vector(const Stored* weight, const Sizes& s, long panel, long c, int w) const {
        const long first = (panels.begin(panel) + w) * LANES;
        const long count = c < s.channels ? min<long>(LANES, s.outputs - first) : 0;
        const long group = (c / GROUP * panels.wide(panel) + w) * LANES * GROUP;
        const auto given = [&](int i) {
            const Stored* tap = weight + s.begin + c * s.of_channel + i / SIDE * s.of_row +
                                i % SIDE * s.of_column;
            Stored part[LANES] = {};
            for (long o = 0; o < count; ++o) part[o] = tap[(first + o) * s.of_output];
            return load(part);
        };
        transform<of_kernels>(given, [&](int k, Vector y) {
            Factor* to = at(k, panel) + group + c % GROUP;
            if constexpr (IN_PAIRS) {
                const Half half = narrow(y);
                for (int lane = 0; lane < LANES; ++lane) to[lane * GROUP] = half[lane];
            } else {
                write(to, y);
            }
        });
    }
};

// The outputs of a tile, of the vector of channels from `output` on, from AREA products `apart`.
static void write_outputs(const Real* products, long apart, const Stored* bias, Stored* y,
                          const Sizes& s, long tile, long output) {
    const Place place(s, tile);
    const long count = s.outputs - output;
    const long rows = min<long>(STEP, s.out_height - place.top);
    const long columns = min<long>(STEP, s.out_width - place.left);
    const long first = (place.image * s.out_height + place.top) * s.out_width + place.left;
    const Vector shift = bias ? load(bias + output, count) : Vector{};
    const auto given = [&](int k) { return read<Vector>(products + k * apart); };
    transform<to_outputs>(given, [&](int k, Vector result) {
        const long i = k / STEP, j = k % STEP;
        if (i >= rows || j >= columns) return;
        const Vector sum = result + shift, usual = sum < Vector{} ? Vector{} : sum;
        Stored* to = y + (first + i * s.out_width + j) * s.outputs + output;
        store(to, s.is_rectified ? usual : sum, count);
    });
}

extern "C" void convolve(const Stored* x, const Stored* weight, const Stored* bias, Stored* y,
                         const Sizes& s) {
    const Kernels kernels(weight, s);
    const Panels& panels = kernels.panels;
    const Memory<Stored> zeros(s.channels, 0);
    const long apart = TOGETHER * MOST * LANES + LINE<Real>;
#pragma omp parallel
    {
        const Factors inputs(s.channels, TOGETHER);
        const Memory<Real> products(apart * AREA);
#pragma omp for schedule(dynamic)
        for (long first = 0; first < s.tiles(); first += TOGETHER) {
            const long tiles = min<long>(TOGETHER, s.tiles() - first);
            for (long t = 0; t < tiles; ++t)
                write_tile<of_inputs>(seen(x, s, first + t, zeros.at), inputs, t);
            for (long p = 0; p < panels.count; ++p) {
                const int wide = panels.wide(p);
                with_constant(wide, [&](auto constant) {
                    for (int k = 0; k < AREA; ++k)
                        for (long t = 0; t < tiles; t += ROWS)
                            over_channels<constant()>(inputs, k, t, kernels.at(k, p),
                                                      products.at + k * apart + t * wide * LANES);
                });
                for (long t = 0; t < tiles; ++t)
                    for (int w = 0; w < wide; ++w)
                        write_outputs(products.at + (t * wide + w) * LANES, apart, bias, y, s,
                                      first + t, (panels.begin(p) + w) * LANES);
            }
        }
    }
}

// The gradient of the weight, from (AREA, outputs, row_length) products.
static void write_weight(const Memory<Real>& products, long row_length, Stored* weight,
                         const Sizes& s) {
    const long apart = vectors(s.outputs) * LANES * row_length + LINE<Real>;
#pragma omp parallel for collapse(2)
    for (long o = 0; o < s.outputs; ++o)
        for (long first = 0; first < s.channels; first += LANES) {
            const long count = min<long>(LANES, s.channels - first);
            const Real* from = products.at + o * row_length + first;
            const auto given = [&](int k) { return read<Vector>(from + k * apart); };
            transform<to_kernels>(given, [&](int i, Vector y) {
                Stored part[LANES], *tap = weight + o * s.of_output + first * s.of_channel +
                                           i / SIDE * s.of_row + i % SIDE * s.of_column;
                store(part, y);
                for (long c = 0; c < count; ++c) tap[c * s.of_channel] = part[c];
            });
        }
}

extern "C" void weight_gradient(const Stored* gradient, const Stored* x, Stored* weight,
                                const Sizes& s) {
    const Factors inputs(s.channels, SUMMED), outputs(s.outputs, SUMMED);
    const Panels panels(s.channels);
    const long row_length = panels.all * LANES, columns = vectors(s.outputs) * LANES;
    const long apart = columns * row_length + LINE<Real>;
    const Memory<Real> products(apart * AREA);
    const Memory<Stored> zeros(max(s.channels, s.outputs), 0);
#pragma omp parallel
    for (long first = 0; first < s.tiles(); first += SUMMED) {
        const long tiles = min<long>(SUMMED, s.tiles() - first);
#pragma omp for schedule(dynamic, 4)
        for (long t = 0; t < tiles; t += GROUP) {
            const auto input = [&](long tile) { return seen(x, s, first + tile, zeros.at); };
            const auto output = [&](long tile) { return own(gradient, s, first + tile, zeros.at); };
            write_group<of_inputs>(input, inputs, t, tiles);
            write_group<of_gradients>(output, outputs, t, tiles);
        }
#pragma omp for collapse(2) schedule(dynamic)
        for (int k = 0; k < AREA; ++k)
            for (long output = 0; output < columns; output += LANES)
                for (long p = 0; p < panels.count; ++p)
                    with_constant(panels.wide(p), [&](auto constant) {
                        for (long o = output; o < output + LANES; o += ROWS)
                            over_tiles<constant()>(
                                outputs, o, inputs, panels.begin(p), k, tiles,
                                products.at + k * apart + o * row_length + panels.begin(p) * LANES,
                                row_length, first == 0);
                    });
    }
    write_weight(products, row_length, weight, s);
}
