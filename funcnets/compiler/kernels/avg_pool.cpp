// Average pools on plain maps whose windows, of HEIGHT×WIDTH, cover them each pixel once, and their
// gradient.  Before this text stand HEIGHT and WIDTH, and the types Stored, in memory, and Real.

constexpr long LONGEST = 1 << 15;  // numbers that one thread takes alone
constexpr long TOGETHER = 256;     // windows at a time, or a row of them

struct Sizes {
    long planes, height, width;  // of the pooled map
};

// Calls with the first of some rows of windows and how many there are, and with memory for a number
// of each window and for their pixels.
template <class F>
static void by_rows(const Sizes& s, F call) {
    const long all = s.planes * s.height, rows = max(1l, TOGETHER / s.width);
#pragma omp parallel if (all * s.width > LONGEST)
    {
        const Memory<Real> windows(rows * s.width), pixels(HEIGHT * WIDTH * rows * s.width);
#pragma omp for
        for (long first = 0; first < all; first += rows)
            call(first, min(rows, all - first), windows.at, pixels.at);
    }
}

extern "C" void average(const Stored* x, Stored* y, const Sizes& s) {
    const long width = s.width, row_length = width * WIDTH;
    by_rows(s, [=](long first, long rows, Real* sums, Real* room) {
        const Stored* given = x + first * HEIGHT * row_length;
        const Real* pixels = computed(given, room, rows * HEIGHT * row_length);
        for (long row = 0; row < rows; ++row)
#pragma omp simd
            for (long j = 0; j < width; ++j) {
                const Real* from = pixels + row * HEIGHT * row_length + j * WIDTH;
                Real sum = 0;
                for (int k = 0; k < HEIGHT; ++k)
                    for (int l = 0; l < WIDTH; ++l) sum += from[k * row_length + l];
                sums[row * width + j] = sum;
            }
        Stored* to = y + first * width;
        for (long i = 0; i < rows * width; ++i)
            to[i] = stored<Stored>(sums[i] / (HEIGHT * WIDTH));
    });
}

extern "C" void spread(const Stored* gradient, Stored* x, const Sizes& s) {
    const long width = s.width, row_length = width * WIDTH;
    by_rows(s, [=](long first, long rows, Real* shares, Real*) {
        const Stored* given = gradient + first * width;
        for (long i = 0; i < rows * width; ++i)
            shares[i] = rounded<Stored>(computed(given[i]) / (HEIGHT * WIDTH));
        for (long row = 0; row < rows; ++row) {
            Stored* to = x + (first + row) * HEIGHT * row_length;
#pragma omp simd
            for (long j = 0; j < width; ++j) {
                const Stored share = kept<Stored>(shares[row * width + j]);
                for (int k = 0; k < HEIGHT; ++k)
                    for (int l = 0; l < WIDTH; ++l) to[k * row_length + j * WIDTH + l] = share;
            }
        }
    });
}
