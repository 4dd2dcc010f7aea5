// Max pooling of NHWC (channels_last) feature maps, and its gradient.  The position of the maximum in its
// window, counted row by row, is kept as one byte: its tap.
//
// Before this text stands vectors.hpp.

struct Sizes {
    long images, channels, height, width, out_height, out_width;
    long rows, columns, stride_y, stride_x, padding_top, padding_left;  // of the window
};

typedef decltype(Vector() < Vector()) IntVector;  // an integer for each lane of a Vector
typedef std::uint8_t ByteVector __attribute__((vector_size(LANES)));
typedef std::uint16_t ShortVector __attribute__((vector_size(2 * LANES)));

constexpr int MAX_VECTORS = 4;  // of channels at a time

static inline IntVector load_taps(const std::uint8_t* from, long count) {
    const ByteVector bytes = load_lanes<ByteVector>(from, count);
#if defined(__AVX512F__) && !defined(STORED_double) && !defined(__clang__)
    // GCC's own name of the instruction: <immintrin.h> takes longer to compile than this file.
    typedef char CharVector __attribute__((vector_size(LANES)));
    return __builtin_ia32_pmovzxbd512_mask((CharVector)bytes, IntVector{}, 0xffff);
#endif
    // In two steps: GCC makes slow code of a direct conversion.
    return __builtin_convertvector(__builtin_convertvector(bytes, ShortVector), IntVector);
}

// Stores numbers that the memory type can hold exactly.
static inline void store_exact(Stored* to, Vector x, long count) {
    if constexpr (IS_BFLOAT16)
        store_lanes(to, __builtin_convertvector((BitsVector)x >> 16, Bfloat16Vector), count);
    else
        store_lanes(to, x, count);
}

// Pixel (i, j) of the output, of image n.
static inline void pool_window(const Stored* x, Stored* y, std::uint8_t* taps, const Sizes& s, long n,
                               long i, long j) {
    const long top = i * s.stride_y - s.padding_top, left = j * s.stride_x - s.padding_left;
    const long first_row = max(0l, -top), last_row = min(s.rows, s.height - top);
    const long first_column = max(0l, -left), last_column = min(s.columns, s.width - left);
    const Stored* corner = x + ((n * s.height + top) * s.width + left) * s.channels;
    const long to = ((n * s.out_height + i) * s.out_width + j) * s.channels;
    for_vectors<MAX_VECTORS>(s.channels, [&](long c, auto vectors, auto count) {
        Vector maximum[vectors];
        IntVector tap_of_maximum[vectors];
        for (int v = 0; v < vectors; ++v) {
            maximum[v] = Vector{} - std::numeric_limits<Real>::infinity();
            tap_of_maximum[v] = IntVector{} + int(first_row * s.columns + first_column);
        }
        for (long row = first_row; row < last_row; ++row)
            for (long column = first_column; column < last_column; ++column) {
                const Stored* pixel = corner + (row * s.width + column) * s.channels + c;
                const IntVector tap = IntVector{} + int(row * s.columns + column);
                for (int v = 0; v < vectors; ++v) {
                    const Vector value = load(pixel + v * LANES, count);
                    const IntVector is_larger = (value > maximum[v]) | (value != value);  // or NaN
                    maximum[v] = is_larger ? value : maximum[v];
                    tap_of_maximum[v] = is_larger ? tap : tap_of_maximum[v];
                }
            }
        for (int v = 0; v < vectors; ++v) {
            const long first = to + c + v * LANES;
            store_exact(y + first, maximum[v], count);
            store_lanes(taps + first, __builtin_convertvector(tap_of_maximum[v], ByteVector), count);
        }
    });
}

// The windows, from first to last, that contain a position along one side of the input.
struct Windows {
    long first = 0, last = -1;
    void advance(long position, long taps, long stride, long count) {
        while (first * stride + taps <= position) ++first;
        while (last + 1 < count && (last + 1) * stride <= position) ++last;
    }
};

// Row i of the gradient of the input, of image n: each pixel sums the gradients of the windows whose
// maximum it is.
static inline void input_gradient_row(const Stored* grad, const std::uint8_t* taps, Stored* grad_x,
                                      const Sizes& s, long n, long i) {
    const long row = i + s.padding_top;
    Windows vertical, horizontal;
    vertical.advance(row, s.rows, s.stride_y, s.out_height);
    for (long j = 0; j < s.width; ++j) {
        const long column = j + s.padding_left;
        horizontal.advance(column, s.columns, s.stride_x, s.out_width);
        Stored* to = grad_x + ((n * s.height + i) * s.width + j) * s.channels;
        for_vectors<MAX_VECTORS>(s.channels, [&](long c, auto vectors, auto count) {
            Vector sum[vectors] = {};
            for (long k = vertical.first; k <= vertical.last; ++k)
                for (long l = horizontal.first; l <= horizontal.last; ++l) {
                    const long window = ((n * s.out_height + k) * s.out_width + l) * s.channels + c;
                    const int tap = (row - k * s.stride_y) * s.columns + column - l * s.stride_x;
                    for (int v = 0; v < vectors; ++v) {
                        const IntVector maximum = load_taps(taps + window + v * LANES, count);
                        const Vector share = load(grad + window + v * LANES, count);
                        sum[v] += maximum == IntVector{} + tap ? share : Vector{};
                    }
                }
            for (int v = 0; v < vectors; ++v) store(to + c + v * LANES, sum[v], count);
        });
    }
}

extern "C" void max_pool(const Stored* x, Stored* y, std::uint8_t* taps, const Sizes& s) {
#pragma omp parallel for collapse(2)
    for (long n = 0; n < s.images; ++n)
        for (long i = 0; i < s.out_height; ++i)
            for (long j = 0; j < s.out_width; ++j) pool_window(x, y, taps, s, n, i, j);
}

extern "C" void max_pool_backward(const Stored* grad, const std::uint8_t* taps, Stored* grad_x,
                                  const Sizes& s) {
#pragma omp parallel for collapse(2)
    for (long n = 0; n < s.images; ++n)
        for (long i = 0; i < s.height; ++i) input_gradient_row(grad, taps, grad_x, s, n, i);
}
