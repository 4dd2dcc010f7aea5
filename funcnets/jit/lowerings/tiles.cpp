// y = P x Pᵀ for tiles x of maps, with channels as vectors.
//
// Before this stand `Scalar` and, for each small matrix, a struct with its sides (OUT rows, IN
// columns) and the product with IN vectors; after it, for each, EXPORT(name).

#include <algorithm>
#include <cstring>

#ifdef __AVX512F__
constexpr int BYTES = 64;
#else
constexpr int BYTES = 32;
#endif
constexpr int LANES = BYTES / sizeof(Scalar);
typedef Scalar Vector __attribute__((vector_size(BYTES)));

// Where the tiles of a tensor lie.  Strides are in numbers: from image to image, from one tile to
// the next below and beside it, and within a tile; those outside of a map of height by width are 0.
struct View {
    long image, below, beside, row, column, channel;
    long top, left, step, height, width;

    bool holds(long tile_row, long tile_column, long i, long j) const {
        const long y = top + tile_row * step + i, x = left + tile_column * step + j;
        return 0 <= y && y < height && 0 <= x && x < width;
    }
    long offset(long n, long tile_row, long tile_column) const {
        return n * image + tile_row * below + tile_column * beside + top * row + left * column;
    }
};

static inline Vector load(const Scalar* from, long stride, int count) {
    Vector x = {};
    if (stride == 1 && count == LANES)
        std::memcpy(&x, from, BYTES);
    else
        for (int lane = 0; lane < count; ++lane) x[lane] = from[lane * stride];
    return x;
}

static inline void store(Scalar* to, Vector x, long stride, int count) {
    if (stride == 1 && count == LANES)
        std::memcpy(to, &x, BYTES);
    else
        for (int lane = 0; lane < count; ++lane) to[lane * stride] = x[lane];
}

template <class Matrix>
static void apply(const Scalar* source, Scalar* target, const Scalar* bias, const long* sizes,
                  const View* from, const View* to) {
    constexpr int IN = Matrix::IN, OUT = Matrix::OUT;
    const long images = sizes[0], rows = sizes[1], columns = sizes[2], channels = sizes[3];
#pragma omp parallel for collapse(3)
    for (long n = 0; n < images; ++n)
        for (long r = 0; r < rows; ++r)
            for (long q = 0; q < columns; ++q) {
                const Scalar* first = source + from->offset(n, r, q);
                Scalar* last = target + to->offset(n, r, q);
                bool inside[IN * IN], wanted[OUT * OUT];
                for (int i = 0; i < IN * IN; ++i) inside[i] = from->holds(r, q, i / IN, i % IN);
                for (int i = 0; i < OUT * OUT; ++i) wanted[i] = to->holds(r, q, i / OUT, i % OUT);
                for (long c = 0; c < channels; c += LANES) {
                    const int count = std::min<long>(LANES, channels - c);
                    const Vector shift = bias ? load(bias + c, 1, count) : Vector{};
                    Vector x[IN * IN], half[OUT * IN], y[OUT];
                    for (int i = 0; i < IN * IN; ++i)
                        x[i] = inside[i]
                            ? load(first + i / IN * from->row + i % IN * from->column +
                                   c * from->channel, from->channel, count)
                            : Vector{};
                    for (int j = 0; j < IN; ++j) Matrix::times(x + j, IN, half + j, IN);
                    for (int i = 0; i < OUT; ++i) {
                        Matrix::times(half + i * IN, 1, y, 1);
                        for (int j = 0; j < OUT; ++j)
                            if (wanted[i * OUT + j])
                                store(last + i * to->row + j * to->column + c * to->channel,
                                      y[j] + shift, to->channel, count);
                    }
                }
            }
}

#define EXPORT(name)                                                                        \
    extern "C" void name(const Scalar* source, Scalar* target, const Scalar* bias,          \
                         const long* sizes, const View* from, const View* to) {             \
        apply<struct name##_matrix>(source, target, bias, sizes, from, to);                 \
    }
