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

static inline Whole load_bytes(const std::uint8_t* from, long count) {
    const Bytes bytes = read<Bytes>(from, count);
#if defined(__AVX512F__) && !defined(STORED_double) && !defined(__clang__)
    // GCC's name for it, as <immintrin.h> takes it longer to read than all of this.
    typedef char Chars __attribute__((vector_size(LANES)));
    return __builtin_ia32_pmovzxbd512_mask((Chars)bytes, Whole{}, 0xffff);
#endif
    // By way of halves, as GCC has no short way.
    return __builtin_convertvector(__builtin_convertvector(bytes, Halves), Whole);
}

// Numbers that memory's type holds, as they are.
static inline void keep(Stored* to, Vector x, long count) {
    if constexpr (IS_NARROW) write(to, __builtin_convertvector((Bits)x >> 16, Half), count);
    else write(to, x, count);
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
            write(where + first, __builtin_convertvector(at[v], Bytes), count);
        }
    });
}

// The windows, from first to last, that cover a place along one side.
struct Windows {
    long first = 0, last = -1;
    void advance(long place, long taps, long stride, long count) {
        while (first * stride + taps <= place) ++first;
        while (last + 1 < count && (last + 1) * stride <= place) ++last;
    }
};

// Each pixel of a row of the input gathers the gradients of the windows whose maximum it is.
static inline void of_row(const Stored* gradient, const std::uint8_t* where, Stored* x,
                          const Sizes& s, long n, long i) {
    const long row = i + s.above;
    Windows down, across;
    down.advance(row, s.rows, s.down, s.out_height);
    for (long j = 0; j < s.width; ++j) {
        const long column = j + s.before;
        across.advance(column, s.columns, s.across, s.out_width);
        Stored* to = x + ((n * s.height + i) * s.width + j) * s.channels;
        in_vectors<WIDE>(s.channels, [&](long c, auto wide, auto count) {
            Vector sum[wide] = {};
            for (long k = down.first; k <= down.last; ++k)
                for (long l = across.first; l <= across.last; ++l) {
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
        for (long i = 0; i < s.height; ++i) of_row(gradient, where, x, s, n, i);
}
