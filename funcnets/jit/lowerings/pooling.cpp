// Average pools on plain maps whose windows, of HEIGHT×WIDTH, cover them each pixel once, and their
// gradient.  Before this text stand HEIGHT and WIDTH.

constexpr long LONGEST = 1 << 15;  // numbers that one thread takes alone

template <class Stored>
static void average(const Stored* x, Stored* y, long planes, long height, long width) {
    const long row_length = width * WIDTH;
#pragma omp parallel for if (planes * height * width > LONGEST)
    for (long row = 0; row < planes * height; ++row) {
        const Stored* from = x + row * HEIGHT * row_length;
        for (long j = 0; j < width; ++j) {
            decltype(computed(*x)) sum = 0;
            for (int k = 0; k < HEIGHT; ++k)
                for (int l = 0; l < WIDTH; ++l) sum += computed(from[k * row_length + j * WIDTH + l]);
            y[row * width + j] = stored<Stored>(sum / (HEIGHT * WIDTH));
        }
    }
}

template <class Stored>
static void spread(const Stored* gradient, Stored* x, long planes, long height, long width) {
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

#define EXPORT(Stored)                                                                          \
    extern "C" void Stored##_average(const Stored* x, Stored* y, long planes, long height,      \
                                     long width) {                                              \
        average(x, y, planes, height, width);                                                   \
    }                                                                                           \
    extern "C" void Stored##_spread(const Stored* gradient, Stored* x, long planes, long height, \
                                    long width) {                                               \
        spread(gradient, x, planes, height, width);                                             \
    }
EXPORT(float)
EXPORT(double)
EXPORT(bfloat16)
