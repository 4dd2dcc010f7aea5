// Average pools on plain maps whose windows, of HEIGHT×WIDTH, cover them each pixel once, and their
// gradient.  Before this text stand HEIGHT and WIDTH, and the types Stored, in memory, and Real.

constexpr long LONGEST = 1 << 15;  // numbers that one thread takes alone

extern "C" void average(const Stored* x, Stored* y, long planes, long height, long width) {
    const long row_length = width * WIDTH;
#pragma omp parallel for if (planes * height * width > LONGEST)
    for (long row = 0; row < planes * height; ++row) {
        const Stored* from = x + row * HEIGHT * row_length;
        for (long j = 0; j < width; ++j) {
            Real sum = 0;
            for (int k = 0; k < HEIGHT; ++k)
                for (int l = 0; l < WIDTH; ++l) sum += computed(from[k * row_length + j * WIDTH + l]);
            y[row * width + j] = stored<Stored>(sum / (HEIGHT * WIDTH));
        }
    }
}

extern "C" void spread(const Stored* gradient, Stored* x, long planes, long height, long width) {
    const long row_length = width * WIDTH;
#pragma omp parallel for if (planes * height * width > LONGEST)
    for (long row = 0; row < planes * height; ++row) {
        Stored* to = x + row * HEIGHT * row_length;
        for (long j = 0; j < width; ++j) {
            const auto share = computed(gradient[row * width + j]) / (HEIGHT * WIDTH);
            const Stored rounded = stored<Stored>(share);
            for (int k = 0; k < HEIGHT; ++k)
                for (int l = 0; l < WIDTH; ++l) to[k * row_length + j * WIDTH + l] = rounded;
        }
    }
}
