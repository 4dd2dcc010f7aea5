// Max pools on channels_last maps, and their gradient.  The tap of a window at which its maximum is,
// counted row by row, is a byte.  Before this text stands vectors.hpp.

struct Sizes {
    long images, channels, height, width, out_height, out_width;
    long rows, columns, down, across, above, before;  // window, stride and padding
};

typedef decltype(Vector() < Vector()) Whole;  // a whole number for each lane
typedef std::uint8_t Bytes __attribute__((vector_size(LANES)));
typedef std::uint16_t Halves __attribute__((vector_size(2 * LANES)));

constexpr int WIDE = 4;  // vectors of channels at a time

// So many bytes, and zeros, as whole numbers; by way of halves, as the compiler has no short way.
static inline Whole load_bytes(const std::uint8_t* from, long count) {
    Bytes bytes = {};
    std::memcpy(&bytes, from, count);
    return __builtin_convertvector(__builtin_convertvector(bytes, Halves), Whole);
}

// Numbers that memory's type holds, as they are.
static inline void keep(Stored* to, Vector x, long count) {
    Stored part[LANES];
    if constexpr (IS_NARROW) write(part, __builtin_convertvector((Bits)x >> 16, Half));
    else write(part, x);
    std::memcpy(to, part, count * sizeof(Stored));
}

static inline void of_window(const Stored* x, Stored* y, std::uint8_t* where, const Sizes& s,
                             long n, long i, long j) {
    const long top = i * s.down - s.above, left = j * s.across - s.before;
    const long first_row = max(0l, -top), last_row = min(s.rows, s.height - top);
    const long first_column = max(0l, -left), last_column = min(s.columns, s.width - left);
    const Stored* corner = x + ((n * s.height + top) * s.width + left) * s.channels;
    const long to = ((n * s.out_height + i) * s.out_width + j) * s.channels;
    in_vectors<WIDE>(s.channels, [&](long c, auto wide, auto count) {
        Vector most[wide];
        Whole at[wide];
        for (int v = 0; v < wide; ++v) {
            most[v] = Vector{} - std::numeric_limits<Real>::infinity();
            at[v] = Whole{} + int(first_row * s.columns + first_column);
        }
        for (long row = first_row; row < last_row; ++row)
            for (long column = first_column; column < last_column; ++column) {
                const Stored* pixel = corner + (row * s.width + column) * s.channels + c;
                const Whole tap = Whole{} + int(row * s.columns + column);
                for (int v = 0; v < wide; ++v) {
                    const Vector value = load(pixel + v * LANES, count);
                    const Whole is_more = (value > most[v]) | (value != value);
                    most[v] = is_more ? value : most[v];
                    at[v] = is_more ? tap : at[v];
                }
            }
        for (int v = 0; v < wide; ++v) {
            const long first = to + c + v * LANES;
            keep(y + first, most[v], count);
            const Bytes bytes = __builtin_convertvector(at[v], Bytes);
            std::memcpy(where + first, &bytes, count);
        }
    });
}

// Each pixel of the input gathers the gradients of the windows whose maximum it is.
static inline void of_pixel(const Stored* gradient, const std::uint8_t* where, Stored* x,
                            const Sizes& s, long n, long i, long j) {
    const long row = i + s.above, column = j + s.before;
    const long first_row = max(0l, (row - s.rows + s.down) / s.down);
    const long first_column = max(0l, (column - s.columns + s.across) / s.across);
    const long last_row = min(s.out_height - 1, row / s.down);
    const long last_column = min(s.out_width - 1, column / s.across);
    Stored* to = x + ((n * s.height + i) * s.width + j) * s.channels;
    in_vectors<WIDE>(s.channels, [&](long c, auto wide, auto count) {
        Vector sum[wide] = {};
        for (long k = first_row; k <= last_row; ++k)
            for (long l = first_column; l <= last_column; ++l) {
                const long at = ((n * s.out_height + k) * s.out_width + l) * s.channels + c;
                const int tap = (row - k * s.down) * s.columns + column - l * s.across;
                for (int v = 0; v < wide; ++v) {
                    const Whole taken = load_bytes(where + at + v * LANES, count);
                    const Vector share = load(gradient + at + v * LANES, count);
                    sum[v] += taken == Whole{} + tap ? share : Vector{};
                }
            }
        for (int v = 0; v < wide; ++v) store(to + c + v * LANES, sum[v], count);
    });
}

extern "C" void maxima(const Stored* x, Stored* y, std::uint8_t* where, const Sizes& s) {
#pragma omp parallel for collapse(2)
    for (long n = 0; n < s.images; ++n)
        for (long i = 0; i < s.out_height; ++i)
            for (long j = 0; j < s.out_width; ++j) of_window(x, y, where, s, n, i, j);
}

extern "C" void gather(const Stored* gradient, const std::uint8_t* where, Stored* x,
                       const Sizes& s) {
#pragma omp parallel for collapse(2)
    for (long n = 0; n < s.images; ++n)
        for (long i = 0; i < s.height; ++i)
            for (long j = 0; j < s.width; ++j) of_pixel(gradient, where, x, s, n, i, j);
}
