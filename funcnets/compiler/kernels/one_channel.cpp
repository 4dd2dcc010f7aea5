// Convolutions of one input channel, as first layers of grey images are: NHW images, NHWC results.  A
// vector holds output channels.  The sizes of the kernel are constants, so that sums stay in registers.
//
// Before this text stand vectors.hpp (Stored and Real are one type here), and: ROWS and COLUMNS (of the
// kernel), STRIDE_Y and STRIDE_X, PADDING_TOP and PADDING_LEFT, ACCUMULATORS (pixels of a row, or taps
// of the kernel, that are summed at a time) and PARTIAL_SUMS (of the weight's gradient).

constexpr int TAPS = ROWS * COLUMNS;
constexpr int VECTORS_PER_BLOCK = 2;
constexpr int CHANNELS_PER_BLOCK = LANES * VECTORS_PER_BLOCK;

struct Sizes {
    long images, channels, height, width, out_height, out_width;
    long padded_width() const { return width + 2 * PADDING_LEFT; }
    long padded_size() const { return (height + 2 * PADDING_TOP) * padded_width(); }
    // Copies an image to the inside of `buffer`, which has zeros around it.
    const Real* pad(const Real* image, Real* buffer) const {
        for (long y = 0; y < height; ++y)
            std::memcpy(buffer + (PADDING_TOP + y) * padded_width() + PADDING_LEFT, image + y * width,
                        width * sizeof(Real));
        return buffer;
    }
};

// The index at which a group of ACCUMULATORS begins.  The last group overlaps the one before it, so that
// it ends at `count`.
static inline long start(long first, long count) { return min(first, count - ACCUMULATORS); }

// A row of the output, for one block of channels.
static inline void convolve_row(const Real* image, const Real* weight, const Real* bias, Real* to,
                                const Sizes& s) {
    for (long first = 0; first < s.out_width; first += ACCUMULATORS) {
        const long x = start(first, s.out_width);
        Vector sum[ACCUMULATORS][VECTORS_PER_BLOCK];
#pragma GCC unroll 6
        for (int p = 0; p < ACCUMULATORS; ++p)
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS_PER_BLOCK; ++v)
                sum[p][v] = bias ? load(bias + v * LANES) : Vector{};
        const Real* tap = weight;
        for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < COLUMNS; ++j, tap += s.channels) {
                const Vector taps[VECTORS_PER_BLOCK] = {load(tap), load(tap + LANES)};
                const Real* pixel = image + i * s.padded_width() + x * STRIDE_X + j;
#pragma GCC unroll 6
                for (int p = 0; p < ACCUMULATORS; ++p)
#pragma GCC unroll 2
                    for (int v = 0; v < VECTORS_PER_BLOCK; ++v)
                        sum[p][v] += taps[v] * pixel[p * STRIDE_X];
            }
#pragma GCC unroll 6
        for (int p = 0; p < ACCUMULATORS; ++p)
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS_PER_BLOCK; ++v)
                store(to + (x + p) * s.channels + v * LANES, sum[p][v]);
    }
}

// The weight is (ROWS, COLUMNS, channels).
extern "C" void convolution(const Real* x, const Real* weight, const Real* bias, Real* y,
                            const Sizes& s) {
#pragma omp parallel
    {
        const Buffer<Real> buffer(s.padded_size(), 0);
#pragma omp for
        for (long n = 0; n < s.images; ++n) {
            const Real* image = s.pad(x + n * s.height * s.width, buffer.data);
            for (long row = 0; row < s.out_height; ++row)
                for (long c = 0; c < s.channels; c += CHANNELS_PER_BLOCK)
                    convolve_row(image + row * STRIDE_Y * s.padded_width(), weight + c,
                                 bias ? bias + c : bias,
                                 y + (n * s.out_height + row) * s.out_width * s.channels + c, s);
        }
    }
}

// For the gradient of the weight, groups of ACCUMULATORS taps are summed in registers over about
// PIXELS_PER_SUM pixels (whole rows), then added to a buffer.  Where the last group overlaps the one
// before it, both have sums of their own.
constexpr long PIXELS_PER_SUM = 64;
constexpr int TAP_GROUPS = (TAPS + ACCUMULATORS - 1) / ACCUMULATORS;

static inline int tap(int group, int t) { return start(group * ACCUMULATORS, TAPS) + t; }

// Adds what some rows of the output's gradient give for one group of taps and one block of channels.
static inline void add_weight_gradient(const Real* image, long rows, const Real* grad, Real* total,
                                       int group, const Sizes& s) {
    const long padded_width = s.padded_width();
    const Real* pixels[ACCUMULATORS];
    for (int t = 0; t < ACCUMULATORS; ++t)
        pixels[t] = image + tap(group, t) / COLUMNS * padded_width + tap(group, t) % COLUMNS;
    Vector sum[ACCUMULATORS][VECTORS_PER_BLOCK] = {};
    for (long row = 0; row < rows; ++row)
        for (long x = 0; x < s.out_width; ++x, grad += s.channels) {
            const Vector grads[VECTORS_PER_BLOCK] = {load(grad), load(grad + LANES)};
#pragma GCC unroll 6
            for (int t = 0; t < ACCUMULATORS; ++t)
#pragma GCC unroll 2
                for (int v = 0; v < VECTORS_PER_BLOCK; ++v)
                    sum[t][v] += grads[v] * pixels[t][row * STRIDE_Y * padded_width + x * STRIDE_X];
        }
    for (int t = 0; t < ACCUMULATORS; ++t)
        for (int v = 0; v < VECTORS_PER_BLOCK; ++v) {
            Real* to = total + t * s.channels + v * LANES;
            store(to, load(to) + sum[t][v]);
        }
}

// The gradient of the weight, as PARTIAL_SUMS sums over images: (PARTIAL_SUMS, ROWS, COLUMNS, channels).
extern "C" void weight_gradient(const Real* x, const Real* grad, Real* sums, const Sizes& s) {
    const long rows = max(1l, PIXELS_PER_SUM / s.out_width);
#pragma omp parallel
    {
        const Buffer<Real> buffer(s.padded_size(), 0);
#pragma omp for
        for (long part = 0; part < PARTIAL_SUMS; ++part) {
            const Buffer<Real> total(TAP_GROUPS * ACCUMULATORS * s.channels, 0);
            for (long n = part * s.images / PARTIAL_SUMS; n < (part + 1) * s.images / PARTIAL_SUMS; ++n) {
                const Real* image = s.pad(x + n * s.height * s.width, buffer.data);
                for (long row = 0; row < s.out_height; row += rows)
                    for (long c = 0; c < s.channels; c += CHANNELS_PER_BLOCK)
                        for (int group = 0; group < TAP_GROUPS; ++group)
                            add_weight_gradient(
                                image + row * STRIDE_Y * s.padded_width(),
                                min(rows, s.out_height - row),
                                grad + (n * s.out_height + row) * s.out_width * s.channels + c,
                                total.data + group * ACCUMULATORS * s.channels + c, group, s);
            }
            for (int group = 0; group < TAP_GROUPS; ++group)
                for (int t = 0; t < ACCUMULATORS; ++t)
                    std::memcpy(sums + (part * TAPS + tap(group, t)) * s.channels,
                                total.data + (group * ACCUMULATORS + t) * s.channels,
                                s.channels * sizeof(Real));
        }
    }
}
