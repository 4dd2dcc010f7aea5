// Mean and biased variance of each channel of plain maps, in two passes.  Within a plane numbers are
// added up as vectors of their own type, planes as doubles; no number of threads changes the order.

template <class Number>
static void moments(const Number* x, Number* mean, Number* variance, long images, long channels,
                    long pixels) {
    const double count = double(images) * pixels;
#pragma omp parallel for
    for (long c = 0; c < channels; ++c) {
        double total = 0, squares = 0;
        for (long n = 0; n < images; ++n) {
            const Number* plane = x + (n * channels + c) * pixels;
            Number sum = 0;
#pragma omp simd reduction(+ : sum)
            for (long i = 0; i < pixels; ++i) sum += plane[i];
            total += sum;
        }
        const Number middle = total / count;
        for (long n = 0; n < images; ++n) {
            const Number* plane = x + (n * channels + c) * pixels;
            Number sum = 0;
#pragma omp simd reduction(+ : sum)
            for (long i = 0; i < pixels; ++i) sum += (plane[i] - middle) * (plane[i] - middle);
            squares += sum;
        }
        mean[c] = middle;
        variance[c] = squares / count;
    }
}

#define EXPORT(Number)                                                                \
    extern "C" void Number##_moments(const Number* x, Number* mean, Number* variance, \
                                     long images, long channels, long pixels) {       \
        moments(x, mean, variance, images, channels, pixels);                         \
    }
EXPORT(float)
EXPORT(double)
