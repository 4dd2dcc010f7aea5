// Max pools on channels_last maps, and their gradient.  The tap of a window at which its maximum is,
// counted row by row, is a byte.  Before this text stand the types Stored, in memory, and Real.

struct Sizes {
    long images, channels, height, width, out_height, out_width;
    long rows, columns, down, across, above, before;  // window, stride and padding
};

constexpr int WIDE = 32;  // channels at a time, in registers

// Calls with how many of the channels from `first` on are taken, as a constant where it can be.
template <class F>
static inline void in_vectors(long channels, F call) {
    for (long first = 0; first < channels; first += WIDE)
        if (channels - first >= WIDE) call(first, std::integral_constant<int, WIDE>());
        else call(first, int(channels - first));
}

static inline void of_window(const Stored* x, Stored* y, std::uint8_t* where, const Sizes& s,
                             long n, long i, long j) {
    const long top = i * s.down - s.above, left = j * s.across - s.before;
    const long first_row = std::max(0l, -top), last_row = std::min(s.rows, s.height - top);
    const long first_column = std::max(0l, -left), last_column = std::min(s.columns, s.width - left);
    const Stored* corner = x + ((n * s.height + top) * s.width + left) * s.channels;
    const long to = ((n * s.out_height + i) * s.out_width + j) * s.channels;
    in_vectors(s.channels, [&](long c, auto count) {
        Real most[WIDE];
        std::int32_t at[WIDE];
        for (int k = 0; k < count; ++k) {
            most[k] = -std::numeric_limits<Real>::infinity();
            at[k] = first_row * s.columns + first_column;
        }
        for (long row = first_row; row < last_row; ++row)
            for (long column = first_column; column < last_column; ++column) {
                const Stored* pixel = corner + (row * s.width + column) * s.channels + c;
                const std::int32_t tap = row * s.columns + column;
                for (int k = 0; k < count; ++k) {
                    const Real value = computed(pixel[k]);
                    const bool is_more = value > most[k] || value != value;
                    most[k] = is_more ? value : most[k];
                    at[k] = is_more ? tap : at[k];
                }
            }
        for (int k = 0; k < count; ++k) y[to + c + k] = stored<Stored>(most[k]);
        for (int k = 0; k < count; ++k) where[to + c + k] = at[k];
    });
}

// Each pixel of the input gathers the gradients of the windows whose maximum it is.
static inline void of_pixel(const Stored* gradient, const std::uint8_t* where, Stored* x,
                            const Sizes& s, long n, long i, long j) {
    const long row = i + s.above, column = j + s.before;
    const long first_row = std::max(0l, (row - s.rows + s.down) / s.down);
    const long first_column = std::max(0l, (column - s.columns + s.across) / s.across);
    const long last_row = std::min(s.out_height - 1, row / s.down);
    const long last_column = std::min(s.out_width - 1, column / s.across);
    Stored* to = x + ((n * s.height + i) * s.width + j) * s.channels;
    in_vectors(s.channels, [&](long c, auto count) {
        Real sum[WIDE] = {};
        for (long k = first_row; k <= last_row; ++k)
            for (long l = first_column; l <= last_column; ++l) {
                const long at = ((n * s.out_height + k) * s.out_width + l) * s.channels + c;
                const std::int32_t tap = (row - k * s.down) * s.columns + column - l * s.across;
                for (int m = 0; m < count; ++m)
                    sum[m] += where[at + m] == tap ? computed(gradient[at + m]) : 0;
            }
        for (int m = 0; m < count; ++m) to[c + m] = stored<Stored>(sum[m]);
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
