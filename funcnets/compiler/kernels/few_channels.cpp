// Convolutions of few channels, stride 1, no padding, on plain maps (N, C, H, W).  Sizes are
// constants, so that sums stay in registers.
//
// Before this text stand: Stored, in memory, and Real, in registers; INPUTS and OUTPUTS (channels),
// HEIGHT and WIDTH (of the input), ROWS and COLUMNS (of the kernel), TOGETHER (vectors of a row at a
// time), BLOCK (outputs at a time, a divisor of OUTPUTS) and PARTS (sums of a weight's gradient that
// are kept apart).

typedef Real Vector __attribute__((vector_size(32)));
typedef decltype(Vector() < Vector()) Lanes;  // chosen ones, by what is not 0

constexpr int LANES = sizeof(Vector) / sizeof(Real);
constexpr int OUT_HEIGHT = HEIGHT - ROWS + 1, OUT_WIDTH = WIDTH - COLUMNS + 1;
constexpr int VECTORS = (OUT_WIDTH + LANES - 1) / LANES;
constexpr int TAPS = OUTPUTS * INPUTS * ROWS * COLUMNS;
constexpr int INPUT = INPUTS * HEIGHT * WIDTH, OUTPUT = OUTPUTS * OUT_HEIGHT * OUT_WIDTH;
static_assert(OUT_WIDTH >= LANES && OUTPUTS % BLOCK == 0);

static inline Vector load(const Real* from) {
    Vector vector;
    std::memcpy(&vector, from, sizeof vector);
    return vector;
}

static inline void store(Real* to, Vector vector) { std::memcpy(to, &vector, sizeof vector); }

// Where the vector of a row begins: the last one lies over the one before, to end with the row.
static inline int start(int vector) { return min(vector * LANES, OUT_WIDTH - LANES); }

// Row y of BLOCK outputs from `first` on.
static inline void row(const Real* image, const Real* weight, const Real* bias, Stored* output,
                       int first, int y) {
    Real line[BLOCK * OUT_WIDTH];
    for (int before = 0; before < VECTORS; before += TOGETHER) {
        Vector sum[BLOCK][TOGETHER];
#pragma GCC unroll 16
        for (int o = 0; o < BLOCK; ++o)
#pragma GCC unroll 4
            for (int v = 0; v < TOGETHER; ++v) sum[o][v] = Vector{} + (bias ? bias[first + o] : 0);
        for (int c = 0; c < INPUTS; ++c)
            for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 8
                for (int j = 0; j < COLUMNS; ++j) {
                    Vector seen[TOGETHER];
#pragma GCC unroll 4
                    for (int v = 0; v < TOGETHER; ++v)
                        seen[v] = load(image + (c * HEIGHT + y + i) * WIDTH + start(before + v) + j);
#pragma GCC unroll 16
                    for (int o = 0; o < BLOCK; ++o) {
                        const Real tap = weight[(((first + o) * INPUTS + c) * ROWS + i) * COLUMNS + j];
#pragma GCC unroll 4
                        for (int v = 0; v < TOGETHER; ++v) sum[o][v] += tap * seen[v];
                    }
                }
#pragma GCC unroll 16
        for (int o = 0; o < BLOCK; ++o)
#pragma GCC unroll 4
            for (int v = 0; v < TOGETHER; ++v)
                store(line + o * OUT_WIDTH + start(before + v), sum[o][v]);
    }
    for (int o = 0; o < BLOCK; ++o)
        for (int i = 0; i < OUT_WIDTH; ++i)
            output[((first + o) * OUT_HEIGHT + y) * OUT_WIDTH + i] =
                stored<Stored>(line[o * OUT_WIDTH + i]);
}

extern "C" void convolve(const Stored* x, const Stored* weight, const Stored* bias, Stored* output,
                         const long* images) {
    Real weight_room[TAPS], bias_room[OUTPUTS];
    const Real* taps = computed(weight, weight_room, TAPS);
    const Real* shift = bias ? computed(bias, bias_room, OUTPUTS) : nullptr;
#pragma omp parallel for
    for (long n = 0; n < *images; ++n) {
        Real room[INPUT];
        const Real* image = computed(x + n * INPUT, room, INPUT);
        for (int first = 0; first < OUTPUTS; first += BLOCK)
            for (int y = 0; y < OUT_HEIGHT; ++y)
                row(image, taps, shift, output + n * OUTPUT, first, y);
    }
}

// What an image adds to the weight's gradient from PAIR outputs on, lane by lane.
constexpr int PAIR = OUTPUTS % 2 ? 1 : 2;

static inline void taps(const Real* image, const Real* gradient, Vector* total, int first) {
    const int rest = OUT_WIDTH % LANES;
    Lanes last = {};  // those of a row's last vector that no vector before it has
    for (int lane = LANES - rest; lane < LANES; ++lane) last[lane] = -1;
    for (int c = 0; c < INPUTS; ++c)
        for (int i = 0; i < ROWS; ++i) {
            Vector sum[PAIR][COLUMNS] = {};
            for (int y = 0; y < OUT_HEIGHT; ++y)
#pragma GCC unroll 4
                for (int v = 0; v < VECTORS; ++v) {
                    const Real* seen = image + (c * HEIGHT + y + i) * WIDTH + start(v);
                    Vector factor[PAIR];
#pragma GCC unroll 2
                    for (int o = 0; o < PAIR; ++o) {
                        factor[o] = load(gradient + ((first + o) * OUT_HEIGHT + y) * OUT_WIDTH + start(v));
                        if (rest && v == VECTORS - 1) factor[o] = last ? factor[o] : Vector{};
                    }
#pragma GCC unroll 8
                    for (int j = 0; j < COLUMNS; ++j) {
                        const Vector value = load(seen + j);
#pragma GCC unroll 2
                        for (int o = 0; o < PAIR; ++o) sum[o][j] += factor[o] * value;
                    }
                }
            for (int o = 0; o < PAIR; ++o)
                for (int j = 0; j < COLUMNS; ++j)
                    total[(((first + o) * INPUTS + c) * ROWS + i) * COLUMNS + j] += sum[o][j];
        }
}

// The weight's gradient, as PARTS sums (PARTS, OUTPUTS, INPUTS, ROWS, COLUMNS) over images.
extern "C" void weight_gradient(const Stored* x, const Stored* gradient, Real* sums,
                                const long* images) {
#pragma omp parallel for
    for (long part = 0; part < PARTS; ++part) {
        Vector total[TAPS] = {};
        for (long n = part * *images / PARTS; n < (part + 1) * *images / PARTS; ++n) {
            Real room[INPUT], gradient_room[OUTPUT];
            const Real* image = computed(x + n * INPUT, room, INPUT);
            const Real* of_image = computed(gradient + n * OUTPUT, gradient_room, OUTPUT);
            for (int first = 0; first < OUTPUTS; first += PAIR) taps(image, of_image, total, first);
        }
        for (int k = 0; k < TAPS; ++k) {
            Real sum = 0;
            for (int lane = 0; lane < LANES; ++lane) sum += total[k][lane];
            sums[part * TAPS + k] = sum;
        }
    }
}

// Inputs that are summed together, and the length of a row of what they are the sum of: for each
// column of the kernel what it adds, with zeros around, as each lies one place beside the other.
constexpr int TWO = INPUTS % 2 ? 1 : 2;
constexpr int ACROSS = (WIDTH + LANES - 1) / LANES * LANES, BESIDE = COLUMNS - 1 + ACROSS;

// Row y of the gradients of TWO inputs, column by column of the kernel.
static inline void columns(const Real* gradient, const Real* weight, Real* rows, int first, int y) {
    for (int v = 0; v < VECTORS; ++v) {
        Vector sum[TWO][COLUMNS] = {};
        const int top = max(0, y - OUT_HEIGHT + 1), bottom = min(ROWS, y + 1);
        for (int o = 0; o < OUTPUTS; ++o)
            for (int i = top; i < bottom; ++i) {
                const Vector seen = load(gradient + (o * OUT_HEIGHT + y - i) * OUT_WIDTH + start(v));
                const Real* tap = weight + ((o * INPUTS + first) * ROWS + i) * COLUMNS;
#pragma GCC unroll 2
                for (int c = 0; c < TWO; ++c)
#pragma GCC unroll 8
                    for (int j = 0; j < COLUMNS; ++j)
                        sum[c][j] += tap[c * ROWS * COLUMNS + j] * seen;
            }
        for (int c = 0; c < TWO; ++c)
            for (int j = 0; j < COLUMNS; ++j)
                store(rows + ((c * HEIGHT + y) * COLUMNS + j + 1) * BESIDE - ACROSS + start(v), sum[c][j]);
    }
}

extern "C" void input_gradient(const Stored* gradient, const Stored* weight, Stored* x,
                               const long* images) {
    Real weight_room[TAPS];
    const Real* taps = computed(weight, weight_room, TAPS);
#pragma omp parallel
    {
        Real room[OUTPUT], rows[TWO * HEIGHT * COLUMNS * BESIDE] = {}, line[ACROSS];
#pragma omp for
        for (long n = 0; n < *images; ++n) {
            const Real* of_image = computed(gradient + n * OUTPUT, room, OUTPUT);
            for (int first = 0; first < INPUTS; first += TWO) {
                for (int y = 0; y < HEIGHT; ++y) columns(of_image, taps, rows, first, y);
                Stored* to = x + n * INPUT + first * HEIGHT * WIDTH;
                for (int row = 0; row < TWO * HEIGHT; ++row) {
                    for (int v = 0; v < ACROSS; v += LANES) {
                        Vector sum = {};
                        for (int j = 0; j < COLUMNS; ++j)
                            sum += load(rows + (row * COLUMNS + j + 1) * BESIDE - ACROSS + v - j);
                        store(line + v, sum);
                    }
                    for (int i = 0; i < WIDTH; ++i) to[row * WIDTH + i] = stored<Stored>(line[i]);
                }
            }
        }
    }
}
