// Convolutions of few channels with stride 1 and no padding, on NCHW feature maps.  A vector holds
// neighbouring pixels of a row.  All sizes are constants, so that sums stay in registers.
//
// Before this text stand numbers.hpp, the types Stored (in memory) and Real (in registers), and:
// INPUTS and OUTPUTS (channels), HEIGHT and WIDTH (of the input), ROWS and COLUMNS (of the kernel),
// VECTORS_PER_BLOCK (vectors of a row at a time), OUTPUTS_PER_BLOCK (output channels at a time, a
// divisor of OUTPUTS) and PARTIAL_SUMS (of the weight's gradient).

typedef Real Vector __attribute__((vector_size(32)));
typedef decltype(Vector() < Vector()) Mask;  // a lane is chosen where it is not 0

constexpr int LANES = sizeof(Vector) / sizeof(Real);
constexpr int OUT_HEIGHT = HEIGHT - ROWS + 1, OUT_WIDTH = WIDTH - COLUMNS + 1;
constexpr int VECTORS_PER_ROW = (OUT_WIDTH + LANES - 1) / LANES;
constexpr int WEIGHT_SIZE = OUTPUTS * INPUTS * ROWS * COLUMNS;
constexpr int INPUT_SIZE = INPUTS * HEIGHT * WIDTH, OUTPUT_SIZE = OUTPUTS * OUT_HEIGHT * OUT_WIDTH;
static_assert(OUT_WIDTH >= LANES && OUTPUTS % OUTPUTS_PER_BLOCK == 0);

static inline Vector load(const Real* from) {
    Vector vector;
    std::memcpy(&vector, from, sizeof vector);
    return vector;
}

static inline void store(Real* to, Vector vector) { std::memcpy(to, &vector, sizeof vector); }

// The column at which a vector of a row begins.  The last vector overlaps the one before it, so that it
// ends where the row ends.
static inline int start(int vector) { return min(vector * LANES, OUT_WIDTH - LANES); }

// Row y of the OUTPUTS_PER_BLOCK output channels from `first` on.
static inline void convolve_row(const Real* image, const Real* weight, const Real* bias, Stored* output,
                                int first, int y) {
    Real row[OUTPUTS_PER_BLOCK * OUT_WIDTH];
    for (int before = 0; before < VECTORS_PER_ROW; before += VECTORS_PER_BLOCK) {
        Vector sum[OUTPUTS_PER_BLOCK][VECTORS_PER_BLOCK];
#pragma GCC unroll 16
        for (int o = 0; o < OUTPUTS_PER_BLOCK; ++o)
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS_PER_BLOCK; ++v)
                sum[o][v] = Vector{} + (bias ? bias[first + o] : 0);
        for (int c = 0; c < INPUTS; ++c)
            for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 8
                for (int j = 0; j < COLUMNS; ++j) {
                    Vector pixels[VECTORS_PER_BLOCK];
#pragma GCC unroll 4
                    for (int v = 0; v < VECTORS_PER_BLOCK; ++v)
                        pixels[v] = load(image + (c * HEIGHT + y + i) * WIDTH + start(before + v) + j);
#pragma GCC unroll 16
                    for (int o = 0; o < OUTPUTS_PER_BLOCK; ++o) {
                        const Real tap = weight[(((first + o) * INPUTS + c) * ROWS + i) * COLUMNS + j];
#pragma GCC unroll 4
                        for (int v = 0; v < VECTORS_PER_BLOCK; ++v) sum[o][v] += tap * pixels[v];
                    }
                }
#pragma GCC unroll 16
        for (int o = 0; o < OUTPUTS_PER_BLOCK; ++o)
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS_PER_BLOCK; ++v)
                store(row + o * OUT_WIDTH + start(before + v), sum[o][v]);
    }
    for (int o = 0; o < OUTPUTS_PER_BLOCK; ++o)
        for (int i = 0; i < OUT_WIDTH; ++i)
            output[((first + o) * OUT_HEIGHT + y) * OUT_WIDTH + i] =
                to_stored<Stored>(row[o * OUT_WIDTH + i]);
}

extern "C" void convolution(const Stored* x, const Stored* weight, const Stored* bias, Stored* output,
                            const long* images) {
    Real weight_buffer[WEIGHT_SIZE], bias_buffer[OUTPUTS];
    const Real* real_weight = to_real(weight, weight_buffer, WEIGHT_SIZE);
    const Real* real_bias = bias ? to_real(bias, bias_buffer, OUTPUTS) : nullptr;
#pragma omp parallel for
    for (long n = 0; n < *images; ++n) {
        Real buffer[INPUT_SIZE];
        const Real* image = to_real(x + n * INPUT_SIZE, buffer, INPUT_SIZE);
        for (int first = 0; first < OUTPUTS; first += OUTPUTS_PER_BLOCK)
            for (int y = 0; y < OUT_HEIGHT; ++y)
                convolve_row(image, real_weight, real_bias, output + n * OUTPUT_SIZE, first, y);
    }
}

// Output channels whose gradients share the loads of the image.
constexpr int OUTPUTS_PER_PASS = OUTPUTS % 2 ? 1 : 2;

// Adds the share of one image, for OUTPUTS_PER_PASS output channels, to the gradient of the weight.  Each
// tap has a vector of sums, lane by lane.
static inline void add_weight_gradient(const Real* image, const Real* grad, Vector* total, int first) {
    const int rest = OUT_WIDTH % LANES;
    Mask last = {};  // lanes of a row's last vector that the vector before it does not have
    for (int lane = LANES - rest; lane < LANES; ++lane) last[lane] = -1;
    for (int c = 0; c < INPUTS; ++c)
        for (int i = 0; i < ROWS; ++i) {
            Vector sum[OUTPUTS_PER_PASS][COLUMNS] = {};
            for (int y = 0; y < OUT_HEIGHT; ++y)
#pragma GCC unroll 4
                for (int v = 0; v < VECTORS_PER_ROW; ++v) {
                    const Real* pixels = image + (c * HEIGHT + y + i) * WIDTH + start(v);
                    Vector factor[OUTPUTS_PER_PASS];
#pragma GCC unroll 2
                    for (int o = 0; o < OUTPUTS_PER_PASS; ++o) {
                        factor[o] = load(grad + ((first + o) * OUT_HEIGHT + y) * OUT_WIDTH + start(v));
                        if (rest && v == VECTORS_PER_ROW - 1) factor[o] = last ? factor[o] : Vector{};
                    }
#pragma GCC unroll 8
                    for (int j = 0; j < COLUMNS; ++j) {
                        const Vector pixel = load(pixels + j);
#pragma GCC unroll 2
                        for (int o = 0; o < OUTPUTS_PER_PASS; ++o) sum[o][j] += factor[o] * pixel;
                    }
                }
            for (int o = 0; o < OUTPUTS_PER_PASS; ++o)
                for (int j = 0; j < COLUMNS; ++j)
                    total[(((first + o) * INPUTS + c) * ROWS + i) * COLUMNS + j] += sum[o][j];
        }
}

// The gradient of the weight, as PARTIAL_SUMS sums over images:
// (PARTIAL_SUMS, OUTPUTS, INPUTS, ROWS, COLUMNS).
extern "C" void weight_gradient(const Stored* x, const Stored* grad, Real* sums, const long* images) {
#pragma omp parallel for
    for (long part = 0; part < PARTIAL_SUMS; ++part) {
        Vector total[WEIGHT_SIZE] = {};
        for (long n = part * *images / PARTIAL_SUMS; n < (part + 1) * *images / PARTIAL_SUMS; ++n) {
            Real buffer[INPUT_SIZE], grad_buffer[OUTPUT_SIZE];
            const Real* image = to_real(x + n * INPUT_SIZE, buffer, INPUT_SIZE);
            const Real* real_grad = to_real(grad + n * OUTPUT_SIZE, grad_buffer, OUTPUT_SIZE);
            for (int first = 0; first < OUTPUTS; first += OUTPUTS_PER_PASS)
                add_weight_gradient(image, real_grad, total, first);
        }
        for (int k = 0; k < WEIGHT_SIZE; ++k) {
            Real sum = 0;
            for (int lane = 0; lane < LANES; ++lane) sum += total[k][lane];
            sums[part * WEIGHT_SIZE + k] = sum;
        }
    }
}

// The gradient of the input has an intermediate row for each column of the kernel: what that column adds
// to the pixels.  The rows are summed, each shifted by one pixel against the one before, with zeros
// around.
constexpr int INPUTS_PER_PASS = INPUTS % 2 ? 1 : 2;
constexpr int PADDED_WIDTH = (WIDTH + LANES - 1) / LANES * LANES;
constexpr int ROW_STRIDE = COLUMNS - 1 + PADDED_WIDTH;

// Row y of the gradients of INPUTS_PER_PASS input channels, apart by column of the kernel.
static inline void input_gradient_row(const Real* grad, const Real* weight, Real* rows, int first,
                                      int y) {
    for (int v = 0; v < VECTORS_PER_ROW; ++v) {
        Vector sum[INPUTS_PER_PASS][COLUMNS] = {};
        const int top = max(0, y - OUT_HEIGHT + 1), bottom = min(ROWS, y + 1);
        for (int o = 0; o < OUTPUTS; ++o)
            for (int i = top; i < bottom; ++i) {
                const Vector pixels = load(grad + (o * OUT_HEIGHT + y - i) * OUT_WIDTH + start(v));
                const Real* tap = weight + ((o * INPUTS + first) * ROWS + i) * COLUMNS;
#pragma GCC unroll 2
                for (int c = 0; c < INPUTS_PER_PASS; ++c)
#pragma GCC unroll 8
                    for (int j = 0; j < COLUMNS; ++j)
                        sum[c][j] += tap[c * ROWS * COLUMNS + j] * pixels;
            }
        for (int c = 0; c < INPUTS_PER_PASS; ++c)
            for (int j = 0; j < COLUMNS; ++j)
                store(rows + ((c * HEIGHT + y) * COLUMNS + j + 1) * ROW_STRIDE - PADDED_WIDTH + start(v),
                      sum[c][j]);
    }
}

extern "C" void input_gradient(const Stored* grad, const Stored* weight, Stored* grad_x,
                               const long* images) {
    Real weight_buffer[WEIGHT_SIZE];
    const Real* real_weight = to_real(weight, weight_buffer, WEIGHT_SIZE);
#pragma omp parallel
    {
        Real buffer[OUTPUT_SIZE], rows[INPUTS_PER_PASS * HEIGHT * COLUMNS * ROW_STRIDE] = {};
        Real sums[PADDED_WIDTH];
#pragma omp for
        for (long n = 0; n < *images; ++n) {
            const Real* real_grad = to_real(grad + n * OUTPUT_SIZE, buffer, OUTPUT_SIZE);
            for (int first = 0; first < INPUTS; first += INPUTS_PER_PASS) {
                for (int y = 0; y < HEIGHT; ++y)
                    input_gradient_row(real_grad, real_weight, rows, first, y);
                Stored* to = grad_x + n * INPUT_SIZE + first * HEIGHT * WIDTH;
                for (int row = 0; row < INPUTS_PER_PASS * HEIGHT; ++row) {
                    for (int v = 0; v < PADDED_WIDTH; v += LANES) {
                        Vector sum = {};
                        for (int j = 0; j < COLUMNS; ++j)
                            sum += load(rows + (row * COLUMNS + j + 1) * ROW_STRIDE - PADDED_WIDTH + v - j);
                        store(sums + v, sum);
                    }
                    for (int i = 0; i < WIDTH; ++i) to[row * WIDTH + i] = to_stored<Stored>(sums[i]);
                }
            }
        }
    }
}
