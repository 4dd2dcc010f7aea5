// Average pooling of NCHW feature maps with windows of HEIGHT×WIDTH that tile the map (the stride is
// the window, no padding), and its gradient.
//
// Before this text stand numbers.hpp, HEIGHT, WIDTH, and the types Stored (in memory) and Real (in
// registers).

constexpr long MAX_SERIAL_SIZE = 1 << 15;  // numbers up to which one thread does all
constexpr long WINDOWS_PER_BLOCK = 256;    // at least one row of windows

struct Sizes {
    long planes, height, width;  // images × channels, and the sides of the pooled map
};

// Calls `call(first, rows, windows, pixels)` for blocks of rows of windows, with buffers for one number
// of each window and for one of each pixel.
template <class F>
static void for_row_blocks(const Sizes& s, F call) {
    const long all = s.planes * s.height, rows = max(1l, WINDOWS_PER_BLOCK / s.width);
#pragma omp parallel if (all * s.width > MAX_SERIAL_SIZE)
    {
        const Buffer<Real> windows(rows * s.width), pixels(HEIGHT * WIDTH * rows * s.width);
#pragma omp for
        for (long first = 0; first < all; first += rows)
            call(first, min(rows, all - first), windows.data, pixels.data);
    }
}

extern "C" void avg_pool(const Stored* x, Stored* y, const Sizes& s) {
    const long width = s.width, row_length = width * WIDTH;
    for_row_blocks(s, [=](long first, long rows, Real* sums, Real* buffer) {
        const Stored* from = x + first * HEIGHT * row_length;
        const Real* pixels = to_real(from, buffer, rows * HEIGHT * row_length);
        for (long row = 0; row < rows; ++row)
#pragma omp simd
            for (long j = 0; j < width; ++j) {
                const Real* corner = pixels + row * HEIGHT * row_length + j * WIDTH;
                Real sum = 0;
                for (int k = 0; k < HEIGHT; ++k)
                    for (int l = 0; l < WIDTH; ++l) sum += corner[k * row_length + l];
                sums[row * width + j] = sum;
            }
        Stored* to = y + first * width;
        for (long i = 0; i < rows * width; ++i)
            to[i] = to_stored<Stored>(sums[i] / (HEIGHT * WIDTH));
    });
}

extern "C" void avg_pool_backward(const Stored* grad, Stored* grad_x, const Sizes& s) {
    const long width = s.width, row_length = width * WIDTH;
    for_row_blocks(s, [=](long first, long rows, Real* shares, Real*) {
        const Stored* from = grad + first * width;
        for (long i = 0; i < rows * width; ++i)
            shares[i] = rounded<Stored>(to_real(from[i]) / (HEIGHT * WIDTH));
        for (long row = 0; row < rows; ++row) {
            Stored* to = grad_x + (first + row) * HEIGHT * row_length;
#pragma omp simd
            for (long j = 0; j < width; ++j) {
                const Stored share = to_stored_exact<Stored>(shares[row * width + j]);
                for (int k = 0; k < HEIGHT; ++k)
                    for (int l = 0; l < WIDTH; ++l) to[k * row_length + j * WIDTH + l] = share;
            }
        }
    });
}
