// Convolutions of one channel, as first layers of grey images are, to and from maps (N, H, W, C).
// The sizes of the kernel are constants, so that sums stay in registers.
//
// Before this text stand: Stored and Real, which are one type; ROWS and COLUMNS (of the kernel), DOWN
// and ACROSS (the stride), TOP and LEFT (the padding), TOGETHER (pixels, or taps, at a time), PARTS
// (sums of a weight's gradient that are kept apart), and vectors.hpp.

constexpr int TAPS = ROWS * COLUMNS;
constexpr int WIDE = 2;              // vectors of channels at a time
constexpr int BLOCK = LANES * WIDE;  // channels of them

struct Sizes {
    long images, channels, height, width, out_height, out_width;
    long across() const { return width + 2 * LEFT; }
    long padded() const { return (height + 2 * TOP) * across(); }
    const Real* with_zeros_around(const Real* image, Real* room) const {
        for (long y = 0; y < height; ++y)
            std::memcpy(room + (TOP + y) * across() + LEFT, image + y * width, width * sizeof(Real));
        return room;
    }
};

// Where a group of TOGETHER begins: the last one lies over the one before, to end with the rest.
static inline long start(long first, long all) { return min(first, all - TOGETHER); }

// A row of the output, for one block of channels.
static inline void row(const Real* image, const Real* weight, const Real* bias, Real* to,
                       const Sizes& s) {
    for (long first = 0; first < s.out_width; first += TOGETHER) {
        const long x = start(first, s.out_width);
        Vector sum[TOGETHER][WIDE];
#pragma GCC unroll 6
        for (int p = 0; p < TOGETHER; ++p)
#pragma GCC unroll 2
            for (int w = 0; w < WIDE; ++w) sum[p][w] = bias ? load(bias + w * LANES) : Vector{};
        const Real* tap = weight;
        for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < COLUMNS; ++j, tap += s.channels) {
                const Vector of[WIDE] = {load(tap), load(tap + LANES)};
                const Real* seen = image + i * s.across() + x * ACROSS + j;
#pragma GCC unroll 6
                for (int p = 0; p < TOGETHER; ++p)
#pragma GCC unroll 2
                    for (int w = 0; w < WIDE; ++w) sum[p][w] += of[w] * seen[p * ACROSS];
            }
#pragma GCC unroll 6
        for (int p = 0; p < TOGETHER; ++p)
#pragma GCC unroll 2
            for (int w = 0; w < WIDE; ++w) store(to + (x + p) * s.channels + w * LANES, sum[p][w]);
    }
}

// With the weight as (ROWS, COLUMNS, channels).
extern "C" void convolve(const Real* x, const Real* weight, const Real* bias, Real* y,
                         const Sizes& s) {
#pragma omp parallel
    {
        const Memory<Real> room(s.padded(), 0);
#pragma omp for
        for (long n = 0; n < s.images; ++n) {
            const Real* image = s.with_zeros_around(x + n * s.height * s.width, room.at);
            for (long line = 0; line < s.out_height; ++line)
                for (long c = 0; c < s.channels; c += BLOCK)
                    row(image + line * DOWN * s.across(), weight + c, bias ? bias + c : bias,
                        y + (n * s.out_height + line) * s.out_width * s.channels + c, s);
        }
    }
}

// Taps are summed TOGETHER, the last ones over the ones before; each group has its sums for itself.
constexpr long PIXELS = 64;  // that are summed in registers, in whole rows
constexpr int GROUPS = (TAPS + TOGETHER - 1) / TOGETHER;

static inline int tap(int group, int t) { return start(group * TOGETHER, TAPS) + t; }

// What rows of the output's gradient add to the sums of a group, for one block of channels.
static inline void taps(const Real* image, long rows, const Real* grad, Real* total, int group,
                        const Sizes& s) {
    const long across = s.across();
    const Real* seen[TOGETHER];
    for (int t = 0; t < TOGETHER; ++t)
        seen[t] = image + tap(group, t) / COLUMNS * across + tap(group, t) % COLUMNS;
    Vector sum[TOGETHER][WIDE] = {};
    for (long row = 0; row < rows; ++row)
        for (long x = 0; x < s.out_width; ++x, grad += s.channels) {
            const Vector of[WIDE] = {load(grad), load(grad + LANES)};
#pragma GCC unroll 6
            for (int t = 0; t < TOGETHER; ++t)
#pragma GCC unroll 2
                for (int w = 0; w < WIDE; ++w)
                    sum[t][w] += of[w] * seen[t][row * DOWN * across + x * ACROSS];
        }
    for (int t = 0; t < TOGETHER; ++t)
        for (int w = 0; w < WIDE; ++w) {
            Real* to = total + t * s.channels + w * LANES;
            store(to, load(to) + sum[t][w]);
        }
}

// The weight's gradient, as PARTS sums (PARTS, ROWS, COLUMNS, channels) over images.
extern "C" void weight_gradient(const Real* x, const Real* grad, Real* sums, const Sizes& s) {
    const long lines = max(1l, PIXELS / s.out_width);
#pragma omp parallel
    {
        const Memory<Real> room(s.padded(), 0);
#pragma omp for
        for (long part = 0; part < PARTS; ++part) {
            const Memory<Real> total(GROUPS * TOGETHER * s.channels, 0);
            for (long n = part * s.images / PARTS; n < (part + 1) * s.images / PARTS; ++n) {
                const Real* image = s.with_zeros_around(x + n * s.height * s.width, room.at);
                for (long line = 0; line < s.out_height; line += lines)
                    for (long c = 0; c < s.channels; c += BLOCK)
                        for (int group = 0; group < GROUPS; ++group)
                            taps(image + line * DOWN * s.across(), min(lines, s.out_height - line),
                                 grad + (n * s.out_height + line) * s.out_width * s.channels + c,
                                 total.at + group * TOGETHER * s.channels + c, group, s);
            }
            for (int group = 0; group < GROUPS; ++group)
                for (int t = 0; t < TOGETHER; ++t)
                    std::memcpy(sums + (part * TAPS + tap(group, t)) * s.channels,
                                total.at + (group * TOGETHER + t) * s.channels, s.channels * sizeof(Real));
        }
    }
}
