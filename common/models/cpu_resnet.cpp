// The CIFAR ResNets of common/models/resnet.py on a CPU: forward and backward of one run, float32, one C function each.
//
// A 3x3 convolution of stride 1 is Winograd's F(4x4, 3x3) (Lavin and Gray, 2016): a tile of 4x4 outputs needs 36 products of
// channels where it directly needs 144. The others (of the image, of stride 2, 1x1) copy their inputs into columns. Either way
// the work is a product of small matrices, `multiply`, and its transpose for the weights' gradient, `multiply_weights`.
//
// A map of C channels is kept as [image][C / W][side][side][W], W floats being a vector; a padded one has a border of zeros.
// Stored for the backward pass: each convolution's output y (before batch normalisation) and each block's padded input x.
// What follows a convolution is done where its output is next read, so a forward pass reads y (and the block's input for its
// shortcut) and writes the next y (and block input) once; batch statistics are summed for each image while y is written. The
// same holds backwards for the gradients d. A thread works on whole groups of images, always the same ones, in its own scratch.

#include <immintrin.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <algorithm>
#include <memory>
#include <vector>

#ifdef __AVX512F__
constexpr int W = 16;
#else
constexpr int W = 8;
#endif
typedef float V __attribute__((vector_size(4 * W)));
typedef float Eight __attribute__((vector_size(32)));
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 36")

INLINE V& at(float* p) { return *(V*)p; }
INLINE V at(const float* p) { return *(const V*)p; }
INLINE V all(float x) { return x - V{}; }
INLINE V relu(V x) { return x < V{} ? V{} : x; }  // what is not a number stays so
INLINE void stream(float* p, V v) {               // written past the caches: it is next read a pass later
#ifdef __AVX512F__
  _mm512_stream_ps(p, (__m512)v);
#else
  _mm256_stream_ps(p, (__m256)v);
#endif
}

// Zero at first; large ones on huge pages.
static float* allocate(size_t floats) {
  size_t page = floats > 1 << 20 ? 2 << 20 : 64, bytes = (4 * floats + page - 1) / page * page;
  void* p = aligned_alloc(page, bytes);
#ifdef MADV_HUGEPAGE
  if (page > 64) madvise(p, bytes, MADV_HUGEPAGE);
#endif
  return (float*)memset(p, 0, bytes);
}
struct Free { void operator()(float* p) const { free(p); } };
struct Buffer : std::unique_ptr<float[], Free> {
  Buffer(size_t floats = 0) : unique_ptr(floats ? allocate(floats) : nullptr) {}
  operator float*() const { return get(); }
};

// A convolution and the batch normalisation after it.
struct Conv {
  int ci, co, side, taps, stride;  // side: of the output
  int rows, points, depth;         // rows of a tile in each of so many products, and blocks of their inner dimension
  int chunk, chunk_w;              // tiles at a time, in `convolve` and in `weights_gradient`
  const float *weight = nullptr, *gamma = nullptr, *beta = nullptr;
  float *running_mean = nullptr, *running_var = nullptr;
  Buffer y, statistics;
  float *mean, *inverse, *scale, *shift;  // y normalised is scale * y + shift
  float *a, *b, *c;                       // the gradient of y is a * (that of its normalised value) + b * y + c

  Conv(int batch, int ci, int co, int side, int taps, int stride)
      : ci(ci), co(co), side(side), taps(taps), stride(stride), y((size_t)batch * co * side * side), statistics(7 * co) {
    bool fast = winograd();
    rows = fast ? 1 : 16, points = fast ? 36 : 1, depth = fast ? ci / W : (taps * taps * ci + W - 1) / W;
    chunk = fast ? 16 : 4, chunk_w = fast ? std::max(32, 1024 / co) : 4;
    float** part[] = {&mean, &inverse, &scale, &shift, &a, &b, &c};
    for (int k = 0; k < 7; k++) *part[k] = statistics + k * co;
  }
  bool winograd() const { return taps == 3 && stride == 1 && ci % W == 0; }
  int blocks() const { return co / W; }
  int tiles() const { return side * side / 16; }  // of an image
  int group() const { return std::max(1, std::max(chunk, chunk_w) / tiles()); }  // images at a time
  size_t padded_input() const { return (size_t)ci * (side * stride + 2) * (side * stride + 2); }
  size_t padded() const { return (size_t)co * (side + 2) * (side + 2); }
  const float* map(int image) const { return y + (size_t)image * co * side * side; }
};
struct Block { Conv *first, *second, *shortcut; };  // shortcut: its projection, or none

struct Scratch {  // of one thread
  Buffer v, m, du, in, dy, dx;
};
struct Net {
  int capacity, channels, copies, branches;  // copies: means of each channel, 1 or those of SHIFTS; branches: see `source`
  int batch = 0, widest = 0, passes = 0;
  std::vector<std::unique_ptr<Conv>> convs;
  std::vector<Block> blocks;
  std::vector<Buffer> x;       // x[0] comes from the first convolution, x[b + 1] from block b
  Buffer images, d[2], inner;  // padded images [image][side + 2][side + 2][channels]; gradients
  Buffer aside;                // the gradient of the branches' input from the second one
  Buffer sums, u;              // [image][3][widest channels]; the weights as `multiply` wants them
  std::vector<Scratch> scratch;
  size_t sizes[6] = {};        // floats of a scratch's buffers
  Conv& stem() { return *convs[0]; }
  float* sum(int image) { return sums + (size_t)image * 3 * widest; }
  int ends() { return blocks.size() - branches; }                 // the first block that nothing follows
  int source(int b) { return std::min(b, ends()); }               // whose x block b reads: two branches read the same
  const Conv& before(int k) { return k ? *blocks[k - 1].second : stem(); }  // whose output x[k] is made of
  float* map(int k, int image) { return x[k] + image * before(k).padded(); }
  float* input(int b, int image) { return map(source(b), image); }
  size_t feature(int b, int image, int copy) {
    return (((size_t)image * copies + copy) * branches + b - ends()) * blocks[b].second->co;
  }
};

// ---------- Matrix products, of operands [row / R][block of W channels][point][row % R][W], a point being STEP floats
constexpr int R = W / 2, STEP = (R + 1) * W;  // one vector too many, so that no two points are a multiple of 4 KiB apart

// m[row][out][point] = sum over k of v[row][k][point] u[point][out][k]
template <int N> static void multiply(int points, int depth, int outs, int rows, const float* v, const float* u, float* m) {
  const int next = points * STEP;
  for (int p = 0; p < points; p++, v += STEP, m += STEP)
    for (int o = 0; o < outs; o += N, u += N * depth * W * W)
      for (int r0 = 0; r0 < rows; r0 += R) {
        V sum[R][N] = {};
        const float *row = v + r0 / R * depth * next, *w = u;
        for (int k = 0; k < depth; k++, row += next)
          for (int c = 0; c < W; c++, w += W) {
            V w0 = at(w), w1 = at(w + (N - 1) * depth * W * W);
            UNROLL for (int r = 0; r < R; r++) {
              V x = all(row[r * W + c]);
              sum[r][0] += x * w0;
              if (N == 2) sum[r][N - 1] += x * w1;
            }
          }
        float* to = m + (r0 / R * outs + o) * next;
        UNROLL for (int r = 0; r < R; r++)
          for (int n = 0; n < N; n++) at(to + n * next + r * W) = sum[r][n];
      }
}
static void multiply(int points, int depth, int outs, int rows, const float* v, const float* u, float* m) {
  (outs % 2 ? multiply<1> : multiply<2>)(points, depth, outs, rows, v, u, m);
}

// du[point][out][k] += sum over rows of v[row][k][point] g[row][out][point]
template <int N>
static void multiply_weights(int points, int depth, int outs, int rows, const float* v, const float* g, float* du) {
  constexpr int C = W / N;
  const int next = points * STEP;
  for (int p = 0; p < points; p++, v += STEP, g += STEP)
    for (int o = 0; o < outs; o += N, du += N * depth * W * W)
      for (int k = 0; k < depth * W; k += C) {
        float* to = du + k * W;
        V sum[C][N];
        UNROLL for (int c = 0; c < C; c++)
          for (int n = 0; n < N; n++) sum[c][n] = at(to + (n * depth * W + c) * W);
        for (int r0 = 0; r0 < rows; r0 += R) {
          const float *row = v + (r0 / R * depth + k / W) * next + k % W, *w = g + (r0 / R * outs + o) * next;
          for (int r = 0, all_ = std::min(R, rows - r0); r < all_; r++, row += W, w += W) {
            V w0 = at(w), w1 = at(w + (N - 1) * next);
            UNROLL for (int c = 0; c < C; c++) {
              V x = all(row[c]);
              sum[c][0] += x * w0;
              if (N == 2) sum[c][N - 1] += x * w1;
            }
          }
        }
        UNROLL for (int c = 0; c < C; c++)
          for (int n = 0; n < N; n++) at(to + (n * depth * W + c) * W) = sum[c][n];
      }
}
static void multiply_weights(int points, int depth, int outs, int rows, const float* v, const float* g, float* du) {
  (outs % 2 ? multiply_weights<1> : multiply_weights<2>)(points, depth, outs, rows, v, g, du);
}

// ---------- Winograd's transforms: Y = A^T [(G w G^T) * (B^T x B)] A, and for the weights G^T [(B^T x B) * (A dY A^T)] G

// B^T and A give their rows in pairs, (0, 5), (1, 2) and (3, 4), which share nothing; all at once need too many registers.
template <int PAIR> INLINE void pair_bt(const V* x, V& a, V& b) {
  V p = PAIR == 1 ? x[4] - 4 * x[2] : x[4] - x[2], q = PAIR == 1 ? x[3] - 4 * x[1] : 2 * (x[3] - x[1]);
  a = PAIR ? p + q : 4 * x[0] + (x[4] - 5 * x[2]), b = PAIR ? p - q : 4 * x[1] + (x[5] - 5 * x[3]);
}
template <int PAIR> INLINE void pair_a(const V* y, V& a, V& b) {
  V p = PAIR == 1 ? y[0] + y[2] : y[0] + 4 * y[2], q = PAIR == 1 ? y[1] + y[3] : 2 * y[1] + 8 * y[3];
  a = PAIR ? p + q : y[0], b = PAIR ? p - q : y[3];
}
INLINE void times_at(const V* m, int s, V* y) {
  V p = m[s] + m[2 * s], q = m[s] - m[2 * s], e = m[3 * s] + m[4 * s], f = m[3 * s] - m[4 * s];
  y[0] = m[0] + p + e, y[1] = q + 2 * f, y[2] = p + 4 * e, y[3] = q + 8 * f + m[5 * s];
}
INLINE void times_g(const V* w, int s, V* u) {
  V p = (w[0] + w[2 * s]) / 6, q = w[s] / 6, e = w[0] / 24 + w[2 * s] / 6, f = w[s] / 12;
  u[0] = w[0] / 4, u[1] = -p - q, u[2] = q - p, u[3] = e + f, u[4] = e - f, u[5] = w[2 * s];
}
INLINE void times_gt(const V* u, int s, V* w) {
  V p = u[s] + u[2 * s], q = u[2 * s] - u[s], e = u[3 * s] + u[4 * s], f = u[3 * s] - u[4 * s];
  w[0] = u[0] / 4 - p / 6 + e / 24, w[1] = q / 6 + f / 12, w[2] = u[5 * s] - p / 6 + e / 6;
}
// `times` on the columns of an N x N matrix, then on the rows: M x M elements, handed to `put(i, j, element)`
template <int N, int M, class Get, class Times, class Put> INLINE void both(Get get, Times times, Put put) {
  V t[N * M];
  UNROLL for (int j = 0; j < N; j++) {
    V x[N];
    UNROLL for (int i = 0; i < N; i++) x[i] = get(i, j);
    times(x, 1, t + j * M);
  }
  UNROLL for (int i = 0; i < M; i++) {
    V y[M];
    times(t + i, M, y);
    UNROLL for (int j = 0; j < M; j++) put(i, j, y[j]);
  }
}
// One vector of channels: from an N x N part of a padded map to a row of the 36 products; and from the products to a tile.
template <int PAIR, int N> INLINE void two_rows(const float* from, int pitch, float* to) {
  V t[2][N], x[6], a, b;
  UNROLL for (int j = 0; j < N; j++) {
    UNROLL for (int i = 0; i < N; i++) x[i] = at(from + i * pitch + j * W);
    N == 6 ? pair_bt<PAIR>(x, t[0][j], t[1][j]) : pair_a<PAIR>(x, t[0][j], t[1][j]);
  }
  UNROLL for (int k = 0; k < 2; k++) {
    float* row = to + 6 * (PAIR ? 2 * PAIR - 1 + k : 5 * k) * STEP;
    N == 6 ? pair_bt<0>(t[k], a, b) : pair_a<0>(t[k], a, b);
    at(row) = a, at(row + 5 * STEP) = b;
    N == 6 ? pair_bt<1>(t[k], a, b) : pair_a<1>(t[k], a, b);
    at(row + STEP) = a, at(row + 2 * STEP) = b;
    N == 6 ? pair_bt<2>(t[k], a, b) : pair_a<2>(t[k], a, b);
    at(row + 3 * STEP) = a, at(row + 4 * STEP) = b;
  }
}
template <int N> INLINE void spread(const float* from, int pitch, float* to) {
  two_rows<0, N>(from, pitch, to), two_rows<1, N>(from, pitch, to), two_rows<2, N>(from, pitch, to);
}
INLINE void output_tile(const float* from, V* r) {
  both<6, 4>([=](int i, int j) { return at(from + (6 * i + j) * STEP); }, times_at, [=](int i, int j, V y) { r[4 * i + j] = y; });
}

// ---------- A group of images through one convolution

struct Tile {  // of 4x4 outputs: the image's place in its group, and the first pixel
  int image = 0, y = 0, x = 0;
  void next(int side) {
    if ((x += 4) < side) return;
    x = 0;
    if ((y += 4) < side) return;
    y = 0, image++;
  }
};
// where row `row` of block `k` is
INLINE int place(int points, int depth, int row, int k) { return (row / R * depth + k) * points * STEP + row % R * W; }

static void fill_tile(int side, int depth, const float* in, Tile t, int row, float* v) {
  int pitch = (side + 2) * W;
  in += t.y * pitch + t.x * W, v += place(36, depth, row, 0);
  for (int k = 0; k < depth; k++, in += (side + 2) * pitch, v += 36 * STEP) spread<6>(in, pitch, v);
}
// `move(input, column)` for each vector that an output's column is made of
template <class Move> INLINE void columns(const Conv& c, float* in, Tile t, int row, float* v, Move move) {
  int pitch = c.side * c.stride + 2, border = c.taps == 1, blocks = c.ci / W;
  for (int e = 0; e < 16; e++) {
    float* from = in + (((t.y + e / 4) * c.stride + border) * pitch + (t.x + e % 4) * c.stride + border) * W;
    float* to = v + place(1, c.depth, row + e, 0);
    for (int tap = 0; tap < c.taps * c.taps; tap++)
      for (int k = 0; k < blocks; k++, to += STEP)
        move(at(from + ((k * pitch + tap / c.taps) * pitch + tap % c.taps) * W), at(to));
  }
}
static void fill_image(const Conv& c, const float* in, Tile t, int row, float* v) {  // three runs of three pixels
  for (int e = 0; e < 16; e++) {
    alignas(4 * W) float line[144];
    at(line + c.depth * W - W) = V{};
    for (int i = 0; i < 3; i++)
      memcpy(line + i * 3 * c.ci, in + ((t.y + e / 4 + i) * (c.side + 2) + t.x + e % 4) * c.ci, 12 * c.ci);
    for (int k = 0; k < c.depth; k++) at(v + place(1, c.depth, row + e, k)) = at(line + k * W);
  }
}
static void fill(const Conv& c, const float* in, Tile t, int row, float* v) {
  if (c.winograd()) fill_tile(c.side, c.depth, in, t, row, v);
  else if (c.ci % W) fill_image(c, in, t, row, v);
  else columns(c, (float*)in, t, row, v, [](V input, V& column) { column = input; });
}

// `fill(tile, row)` writes a tile's rows of v, `take(tile, block, r)` gets W channels of its 4x4 outputs
template <class Fill, class Take>
INLINE void convolve(const Conv& c, int depth, int outs, int images, Scratch& s, const float* u, Fill fill, Take take) {
  Tile in, out;
  for (int left = images * c.tiles(); left > 0; left -= c.chunk) {
    int count = std::min(c.chunk, left);
    for (int t = 0; t < count; t++, in.next(c.side)) fill(in, t * c.rows);
    multiply(c.points, depth, outs, count * c.rows, s.v, u, s.m);
    for (int t = 0; t < count; t++, out.next(c.side))
      for (int o = 0; o < outs; o++) {
        V r[16];
        if (c.winograd()) output_tile(s.m + place(36, outs, t, o), r);
        else UNROLL for (int e = 0; e < 16; e++) r[e] = at(s.m + place(1, outs, t * 16 + e, o));
        take(out, o, r);
      }
  }
}
// Adds to du the gradient of the weights from inputs and padded output gradients; where `dx` is, to it that of the inputs.
static void weights_gradient(const Conv& c, int images, const float* const* in, const float* const* dy, Scratch& s, float* du,
                             const float* u = nullptr, float* dx = nullptr) {
  int outs = c.blocks(), pitch = (c.side + 2) * W;
  Tile t, back;
  for (int left = images * c.tiles(); left > 0; left -= c.chunk_w) {
    int count = std::min(c.chunk_w, left);
    for (int k = 0; k < count; k++, t.next(c.side)) {
      fill(c, in[t.image], t, k * c.rows, s.v);
      const float* from = dy[t.image] + (t.y + 1) * pitch + (t.x + 1) * W;
      for (int o = 0; o < outs; o++, from += (c.side + 2) * pitch)
        if (c.winograd()) spread<4>(from, pitch, s.m + place(36, outs, k, o));
        else for (int e = 0; e < 16; e++) at(s.m + place(1, outs, k * 16 + e, o)) = at(from + e / 4 * pitch + e % 4 * W);
    }
    multiply_weights(c.points, c.depth, outs, count * c.rows, s.v, s.m, du);
    if (!dx) continue;
    multiply(1, outs, c.depth, count * c.rows, s.m, u, s.v);
    for (int k = 0; k < count; k++, back.next(c.side))
      columns(c, dx, back, k * 16, s.v, [](V& input, V column) { input += column; });
  }
}

// ---------- Weights in and out

template <class Weight> static void pack(const Conv& c, int threads, int outs, int depth, float* u, Weight weight) {
#pragma omp parallel for collapse(2) num_threads(threads)
  for (int o = 0; o < outs; o++)
    for (int k = 0; k < depth * W; k++) {
      V w[9], x[36];
      if (c.winograd()) {
        for (int tap = 0; tap < 9; tap++) w[tap] = weight(o, k, tap);
        both<3, 6>([&](int i, int j) { return w[3 * i + j]; }, times_g, [&](int i, int j, V u) { x[6 * i + j] = u; });
      } else x[0] = weight(o, k, 0);
      for (int p = 0; p < c.points; p++) at(u + (((size_t)p * outs + o) * depth * W + k) * W) = x[p];
    }
}
static size_t packed(const Conv& c) { return (size_t)c.points * c.depth * W * c.co; }
static void pack_forward(const Conv& c, int threads, float* u) {
  int size = c.taps * c.taps * c.ci;
  pack(c, threads, c.blocks(), c.depth, u, [&](int o, int k, int tap) {
    V w = {};
    if (k < size) for (int lane = 0; lane < W; lane++) w[lane] = c.weight[(o * W + lane) * size + tap * c.ci + k];
    return w;
  });
}
static void pack_backward(const Conv& c, int threads, float* u) {  // outputs become inputs; turned by half
  int size = c.taps * c.taps * c.ci;
  pack(c, threads, c.winograd() ? c.ci / W : c.depth, c.blocks(), u, [&](int o, int k, int tap) {
    V w;
    memcpy(&w, c.weight + (size_t)k * size + (c.winograd() ? (8 - tap) * c.ci : 0) + o * W, sizeof w);
    return w;
  });
}
// the threads' sums, in their order
static void collect(Net& n, const Conv& c, size_t offset, float* dweight) {
  int size = c.taps * c.taps * c.ci, threads = n.scratch.size();
#pragma omp parallel for collapse(2) num_threads(threads)
  for (int o = 0; o < c.blocks(); o++)
    for (int k = 0; k < c.depth * W; k++) {
      V u[36], w[9];
      for (int p = 0; p < c.points; p++) {
        u[p] = V{};
        for (Scratch& s : n.scratch) u[p] += at(s.du + offset + (((size_t)p * c.blocks() + o) * c.depth * W + k) * W);
      }
      if (c.winograd())
        both<6, 3>([&](int i, int j) { return u[6 * i + j]; }, times_gt, [&](int i, int j, V each) { w[3 * i + j] = each; });
      else w[0] = u[0];
      for (int tap = 0; tap < (c.winograd() ? 9 : 1) && k < size; tap++)
        for (int lane = 0; lane < W; lane++) dweight[(size_t)(o * W + lane) * size + tap * c.ci + k] = w[tap][lane];
    }
}

// ---------- Batch normalisation, ReLU, shortcuts

// scale y + shift, `more` of it, ReLU; to `to`, and to `keep` where it is; both are padded
template <class More> INLINE void activate(const Conv& c, int image, float* to, float* keep, More more) {
  int side = c.side, pitch = side + 2;
  const float* y = c.map(image);
  for (int o = 0; o < c.blocks(); o++) {
    V scale = at(c.scale + o * W), shift = at(c.shift + o * W);
    for (int i = 0; i < side; i++)
      for (int j = 0; j < side; j++, y += W) {
        size_t e = ((o * pitch + i + 1) * pitch + j + 1) * W;
        V x = relu(more(scale * at(y) + shift, o * W, y - c.map(image), e));
        at(to + e) = x;
        if (keep) stream(keep + e, x);
      }
  }
}
INLINE V same(V r, int, size_t, size_t) { return r; }

// Option A: pixel (i, j) of the small map of `co` channels is (2i, 2j) of the large one, channel c + (co - ci) / 2 its channel c.
template <class Move> INLINE void every_second(int ci, int co, int side, float* large, float* small, int border, Move move) {
  int pitch = side + 2 * border, wide = 2 * side + 2;
  for (int c = 0; c < ci; c += 8)
    for (int i = 0; i < side; i++)
      for (int j = 0; j < side; j++) {
        int k = c + (co - ci) / 2;
        move(*(Eight*)(large + ((c / W * wide + 2 * i + 1) * wide + 2 * j + 1) * W + c % W),
             *(Eight*)(small + ((k / W * pitch + i + border) * pitch + j + border) * W + k % W));
      }
}
// Reads y (and its projection's) of the block before x[k] and that block's input; writes x[k], and to `to` for now.
static float* make_map(Net& n, int k, int image, float* to) {
  const Conv& c = n.before(k);
  float *keep = n.map(k, image), *from = k ? n.input(k - 1, image) : nullptr;
  const Conv* p = k ? n.blocks[k - 1].shortcut : nullptr;
  if (k == 0) activate(c, image, to, keep, same);
  else if (p) {
    const float *y = p->map(image), *scale = p->scale, *shift = p->shift;
    activate(c, image, to, keep, [=](V r, int o, size_t e, size_t) { return r + at(scale + o) * at(y + e) + at(shift + o); });
  } else if (n.blocks[k - 1].first->stride == 1) {
    activate(c, image, to, keep, [=](V r, int, size_t, size_t padded) { return r + at(from + padded); });
  } else {
    memset(to, 0, 4 * c.padded());
    every_second(c.co / 2, c.co, c.side, from, to, 1, [](Eight large, Eight& small) { small = large; });
    activate(c, image, to, keep, [=](V r, int, size_t, size_t padded) { return r + at(to + padded); });
  }
  return to;
}
// The gradient r of a tile behind a ReLU becomes that before it, which is written to `d` and summed for the batch normalisation
// of c (and p). x: what the ReLU gave, padded; or nullptr where c's output tells.
INLINE void through_relu(Net& n, const Conv& c, const Conv* p, const float* x, int image, Tile t, int o, const V* r, float* d) {
  V sum = {}, sum_c = {}, sum_p = {}, zero = {};
  V mean = at(c.mean + o * W), scale = at(c.scale + o * W), shift = at(c.shift + o * W);
  size_t start = ((size_t)image * c.co / W + o) * c.side * c.side;
  UNROLL for (int e = 0; e < 16; e++) {
    int i = t.y + e / 4, j = t.x + e % 4;
    size_t k = (start + i * c.side + j) * W;
    V y = at(c.y + k), out = x ? at(x + ((o * (c.side + 2) + i + 1) * (c.side + 2) + j + 1) * W) : scale * y + shift;
    V g = out <= zero ? zero : r[e];
    stream(d + k, g);
    sum += g, sum_c += g * (y - mean);
    if (p) sum_p += g * (at(p->y + k) - at(p->mean + o * W));
  }
  float* sums = n.sum(image) + o * W;
  at(sums) += sum, at(sums + n.widest) += sum_c, at(sums + 2 * n.widest) += sum_p;
}
// The gradient of y from that of its normalised value. soon: maps as large that are read next, or none.
static const float* through_norm(const Conv& c, int image, const float* d, float* to, const float* soon1 = nullptr,
                                 const float* soon2 = nullptr) {
  int side = c.side, pitch = side + 2;
  const float* y = c.map(image);
  d += y - c.y;
  for (int o = 0; o < c.blocks(); o++) {
    V a = at(c.a + o * W), b = at(c.b + o * W), k = at(c.c + o * W);
    for (int i = 0; i < side; i++) {
      float* row = to + ((o * pitch + i + 1) * pitch + 1) * W;
      for (int j = 0; j < side; j++, y += W, d += W) {
        at(row + j * W) = a * at(d) + (b * at(y) + k);
        if (soon1)
          for (const float* soon : {soon1, soon2}) _mm_prefetch((const char*)(soon + (y - c.y)), _MM_HINT_T1);
      }
    }
  }
  return to;
}
static void finish_statistics(Net& n, Conv& c, bool train) {
  double count = (double)n.batch * c.side * c.side;
  for (int k = 0; k < c.co; k++) {
    double mean = c.running_mean[k], var = c.running_var[k];
    if (train) {
      double sum = 0, squares = 0;
      for (int i = 0; i < n.batch; i++) sum += n.sum(i)[k], squares += n.sum(i)[n.widest + k];
      mean = sum / count, var = squares / count - mean * mean;
      if (var < 0) var = 0;
      c.running_mean[k] = 0.9f * c.running_mean[k] + 0.1f * (float)mean;
      c.running_var[k] = 0.9f * c.running_var[k] + 0.1f * (float)(var * count / (count - 1));
    }
    c.mean[k] = mean, c.inverse[k] = 1 / sqrt(var + 1e-5);
    c.scale[k] = c.gamma[k] * c.inverse[k], c.shift[k] = c.beta[k] - c.mean[k] * c.scale[k];
  }
}
// which: 1 for the convolution whose map it was, 2 for its projection
static void finish_norm(Net& n, Conv& c, int which, float* dgamma, float* dbeta) {
  double count = (double)n.batch * c.side * c.side;
  for (int k = 0; k < c.co; k++) {
    double sum = 0, product = 0;
    for (int i = 0; i < n.batch; i++) sum += n.sum(i)[k], product += n.sum(i)[which * n.widest + k];
    product *= c.inverse[k];
    dbeta[k] = sum, dgamma[k] = product;
    c.a[k] = c.scale[k], c.b[k] = -c.scale[k] * c.inverse[k] * product / count;
    c.c[k] = -c.scale[k] * sum / count - c.b[k] * c.mean[k];
  }
}

// ---------- Passes over the batch
//
//   forward, of a block        reads                                           writes
//     first (and shortcut)     y of the block before, its input                the block's input x, y, sums of y
//     second                   y of first                                      y, sums of y
//   backward, of a block       (d: the gradient of what its last ReLU gets)
//     second                   d, y of second, y of first                      inner: that of first's ReLU; sums; weights'
//     first (and shortcut)     inner, y of first, x, d, y of the block before  d of the block before; sums; weights'

// Every other pass goes backwards, and so begins with what the last one left in the caches.
template <class Work> static void for_groups(Net& n, int group, Work work) {
  int groups = (n.batch + group - 1) / group, turn = n.passes++ % 2;
#pragma omp parallel num_threads((int)n.scratch.size())
  {
    Scratch& s = n.scratch[omp_get_thread_num()];
    memset(s.in, 0, 4 * n.sizes[3]), memset(s.dy, 0, 4 * n.sizes[4]);
#pragma omp for schedule(static)
    for (int k = 0; k < groups; k++) {
      int first = (turn ? groups - 1 - k : k) * group;
      work(s, first, std::min(group, n.batch - first));
    }
    _mm_sfence();
  }
}
constexpr int GROUP = 64;  // images, at most

// Reads what `input(s, image, place)` gives; writes y and its statistics.
template <class Input> static void forward_conv(Net& n, Conv& c, bool train, Input input) {
  pack_forward(c, n.scratch.size(), n.u);
  for_groups(n, c.group(), [&](Scratch& s, int first, int images) {
    const float* in[GROUP];
    for (int g = 0; g < images; g++) in[g] = input(s, first + g, g);
    memset(n.sum(first), 0, 4 * (n.sum(images) - n.sum(0)));
    convolve(c, c.depth, c.blocks(), images, s, n.u, [&](Tile t, int row) { fill(c, in[t.image], t, row, s.v); },
             [&](Tile t, int o, const V* r) {
      float* y = c.y + ((size_t)(first + t.image) * c.blocks() + o) * c.side * c.side * W;
      V sum = {}, squares = {};
      UNROLL for (int e = 0; e < 16; e++) {
        stream(y + ((t.y + e / 4) * c.side + t.x + e % 4) * W, r[e]);
        sum += r[e], squares += r[e] * r[e];
      }
      at(n.sum(first + t.image) + o * W) += sum, at(n.sum(first + t.image) + n.widest + o * W) += squares;
    });
  });
  finish_statistics(n, c, train);
}
// Reads the gradient d of c's normalised output, y and the inputs; gives `take` that of its inputs, and writes the weights'.
template <class Input, class Take>
static void backward_conv(Net& n, const Conv& c, const float* d, const float* soon1, const float* soon2, float* dweight,
                          Input input, Take take) {
  pack_backward(c, n.scratch.size(), n.u);
  for (Scratch& s : n.scratch) memset(s.du, 0, 4 * packed(c));
  for_groups(n, c.group(), [&](Scratch& s, int first, int images) {
    const float *in[GROUP], *dy[GROUP];
    for (int g = 0; g < images; g++)
      in[g] = input(s, first + g, g), dy[g] = through_norm(c, first + g, d, s.dy + g * c.padded(), soon1, soon2);
    memset(n.sum(first), 0, 4 * (n.sum(images) - n.sum(0)));
    convolve(c, c.blocks(), c.ci / W, images, s, n.u,
             [&](Tile t, int row) { fill_tile(c.side, c.blocks(), dy[t.image], t, row, s.v); },
             [&](Tile t, int o, const V* r) { take(first + t.image, t, o, r); });
    weights_gradient(c, images, in, dy, s, s.du);
  });
  collect(n, c, 0, dweight);
}
// The first convolution of block b and its shortcut, where they halve the side; d: the gradient of each one's normalised output.
template <class Take>
static void backward_strided(Net& n, int b, const float* d_first, const float* d_end, float* const* dweights, Take take) {
  const Block& k = n.blocks[b];
  const Conv& c = *k.first;
  float* u[] = {n.u, n.u + packed(c)};
  pack_backward(c, n.scratch.size(), u[0]);
  if (k.shortcut) pack_backward(*k.shortcut, n.scratch.size(), u[1]);
  for (Scratch& s : n.scratch) memset(s.du, 0, 4 * (packed(c) + (k.shortcut ? packed(*k.shortcut) : 0)));
  for_groups(n, 1, [&](Scratch& s, int image, int) {
    memset(s.dx, 0, 4 * c.padded_input());
    memset(n.sum(image), 0, 4 * (n.sum(1) - n.sum(0)));
    const float *in = n.input(b, image), *dy = through_norm(c, image, d_first, s.dy);
    weights_gradient(c, 1, &in, &dy, s, s.du, u[0], s.dx);
    if (k.shortcut) {
      through_norm(*k.shortcut, image, d_end, s.dy);
      weights_gradient(*k.shortcut, 1, &in, &dy, s, s.du + packed(c), u[1], s.dx);
    } else {
      float* end = (float*)d_end + (size_t)image * c.co * c.side * c.side;
      every_second(c.ci, c.co, c.side, s.dx, end, 0, [](Eight& large, Eight small) { large += small; });
    }
    int side = 2 * c.side;
    for (Tile t; t.image == 0; t.next(side))
      for (int o = 0; o < c.ci / W; o++) {
        V r[16];
        for (int e = 0; e < 16; e++) r[e] = at(s.dx + ((o * (side + 2) + t.y + 1 + e / 4) * (side + 2) + t.x + 1 + e % 4) * W);
        take(image, t, o, r);
      }
  });
  collect(n, c, 0, dweights[0]);
  if (k.shortcut) collect(n, *k.shortcut, packed(c), dweights[1]);
}

// ---------- The network

// What features are means of: the last map and, for a "shifted" network, its shifts over a border of zeros, in the order of
// `SHIFTS` in common/models/pooling.py. A pixel is seen by those that do not move it out.
constexpr int SHIFTS[9][2] = {{0, 0}, {-1, -1}, {-1, 0}, {-1, 1}, {0, -1}, {0, 1}, {1, -1}, {1, 0}, {1, 1}};
INLINE bool sees(int copy, int y, int x, int side) {
  y -= SHIFTS[copy][0], x -= SHIFTS[copy][1];
  return 0 <= y && y < side && 0 <= x && x < side;
}

extern "C" int width() { return W; }
extern "C" void destroy(Net* n) { delete n; }
extern "C" Net* create(int capacity, int channels, int side, int width, int blocks, int stages, int projection, int copies,
                       int branches) {
  Net* n = new Net{capacity, channels, copies, branches};
  auto conv = [&](int ci, int co, int side, int taps, int stride) {
    n->convs.push_back(std::make_unique<Conv>(capacity, ci, co, side, taps, stride));
    const Conv& c = *n->convs.back();
    int deepest = std::max(c.depth, std::max(c.ci / W, c.blocks()));
    size_t operand = (size_t)deepest * c.points * STEP * ((std::max(c.chunk, c.chunk_w) * c.rows + R - 1) / R);
    size_t sizes[] = {operand, operand, packed(c), c.group() * c.padded_input(), c.group() * c.padded(), c.padded_input()};
    if (taps == 1) sizes[2] += packed(*n->convs[n->convs.size() - 3]);  // beside the block's first one
    for (int k = 0; k < 6; k++) n->sizes[k] = std::max(n->sizes[k], sizes[k]);
    n->widest = std::max(n->widest, co);
    return n->convs.back().get();
  };
  conv(channels, width, side, 3, 1);
  int c_in = width;
  for (int stage = 0; stage < stages; stage++)
    for (int i = 0, c_out = width << stage; i < blocks; i++, c_in = c_out) {
      int stride = stage && i == 0 ? 2 : 1;
      side /= stride;
      Conv *first = conv(c_in, c_out, side, 3, stride), *second = conv(c_out, c_out, side, 3, 1);
      n->blocks.push_back({first, second, projection && c_in != c_out ? conv(c_in, c_out, side, 1, stride) : nullptr});
    }
  if (branches == 2) {
    Conv *first = conv(c_in, c_in, side, 3, 1), *second = conv(c_in, c_in, side, 3, 1);
    n->blocks.push_back({first, second, nullptr});
    n->aside = Buffer((size_t)capacity * c_in * side * side);
  }
  size_t largest = 0;
  for (size_t b = 0; b <= n->blocks.size(); b++) {
    const Conv& c = n->before(b);
    n->x.emplace_back(capacity * c.padded());
    largest = std::max(largest, (size_t)capacity * c.co * c.side * c.side);
  }
  int pitch = n->stem().side + 2;
  n->images = Buffer((size_t)capacity * pitch * pitch * channels);
  for (Buffer* d : {&n->d[0], &n->d[1], &n->inner}) *d = Buffer(largest);
  n->sums = Buffer((size_t)capacity * 3 * n->widest), n->u = Buffer(n->sizes[2]);
  return n;
}
// images: [batch][side][side][channels]; pointers: of each convolution its weights [co][taps][taps][ci], gamma, beta, running
// mean and variance; features: [batch][copies][branches][co]
extern "C" void forward(Net* n, int threads, int batch, const float* images, float* const* pointers, int train, float* features) {
  n->batch = batch, n->passes = 0;
  while ((int)n->scratch.size() > threads) n->scratch.pop_back();
  while ((int)n->scratch.size() < threads) {
    n->scratch.emplace_back();
    Scratch& s = n->scratch.back();
    Buffer* all[] = {&s.v, &s.m, &s.du, &s.in, &s.dy, &s.dx};
    for (int k = 0; k < 6; k++) *all[k] = Buffer(n->sizes[k]);
  }
  for (auto& c : n->convs) {
    c->weight = pointers[0], c->gamma = pointers[1], c->beta = pointers[2];
    c->running_mean = pointers[3], c->running_var = pointers[4];
    pointers += 5;
  }
  int side = n->stem().side, line = side * n->channels, pitch = line + 2 * n->channels;
  forward_conv(*n, n->stem(), train, [&](Scratch&, int image, int) {
    float* to = n->images + (size_t)image * (side + 2) * pitch;
    for (int i = 0; i < side; i++)
      memcpy(to + (i + 1) * pitch + n->channels, images + ((size_t)image * side + i) * line, 4 * line);
    return to;
  });
  for (size_t b = 0; b < n->blocks.size(); b++) {
    Block& k = n->blocks[b];
    forward_conv(*n, *k.first, train, [&](Scratch& s, int image, int place) {
      return make_map(*n, n->source(b), image, s.in + place * k.first->padded_input());
    });
    forward_conv(*n, *k.second, train, [&](Scratch& s, int image, int place) {
      float* to = s.in + place * k.first->padded();
      activate(*k.first, image, to, nullptr, same);
      return to;
    });
    if (k.shortcut) forward_conv(*n, *k.shortcut, train, [&](Scratch&, int image, int) { return n->input(b, image); });
  }
  for_groups(*n, 1, [&](Scratch& s, int image, int) {
    for (int b = n->ends(); b < (int)n->blocks.size(); b++) {
      const Conv& c = *n->blocks[b].second;
      const float* in = make_map(*n, b + 1, image, s.in);
      for (int copy = 0; copy < n->copies; copy++)
        for (int o = 0; o < c.blocks(); o++) {
          V sum = {};
          for (int y = 0; y < c.side; y++)
            for (int x = 0; x < c.side; x++)
              if (sees(copy, y, x, c.side)) sum += at(in + ((o * (c.side + 2) + y + 1) * (c.side + 2) + x + 1) * W);
          sum /= (float)(c.side * c.side);
          memcpy(features + n->feature(b, image, copy) + o * W, &sum, sizeof sum);
        }
    }
  });
}
// gradients: of each convolution those of its weights, gamma and beta
extern "C" void backward(Net* n, const float* dfeatures, float* const* gradients) {
  auto place = [&](const Conv* c) {
    int k = 0;
    while (n->convs[k].get() != c) k++;
    return gradients + 3 * k;
  };
  auto finish = [&](int k) {  // the batch normalisations whose sum is x[k]
    Conv& c = (Conv&)n->before(k);
    finish_norm(*n, c, 1, place(&c)[1], place(&c)[2]);
    if (Conv* p = k ? n->blocks[k - 1].shortcut : nullptr) finish_norm(*n, *p, 2, place(p)[1], place(p)[2]);
  };
  auto to_map = [&](int k, int image, Tile t, int o, const V* r, float* d) {
    through_relu(*n, n->before(k), k ? n->blocks[k - 1].shortcut : nullptr, n->map(k, image), image, t, o, r, d);
  };
  n->passes = 0;
  float *d = n->d[0], *next = n->d[1];
  auto begin = [&](int b) {  // from the features that block b gives
    const Conv& end = *n->blocks[b].second;
    for_groups(*n, 1, [&](Scratch&, int image, int) {
      memset(n->sum(image), 0, 4 * (n->sum(1) - n->sum(0)));
      for (int o = 0; o < end.blocks(); o++) {
        V g[9];
        for (int copy = 0; copy < n->copies; copy++)
          memcpy(g + copy, dfeatures + n->feature(b, image, copy) + o * W, sizeof(V));
        for (Tile t; t.image == 0; t.next(end.side)) {
          V r[16] = {};
          for (int e = 0; e < 16; e++) {
            for (int copy = 0; copy < n->copies; copy++)
              if (sees(copy, t.y + e / 4, t.x + e % 4, end.side)) r[e] += g[copy];
            r[e] /= (float)(end.side * end.side);
          }
          to_map(b + 1, image, t, o, r, d);
        }
      }
    });
    finish(b + 1);
  };
  for (int b = n->blocks.size() - 1; b >= 0; b--) {
    if (b >= n->ends()) begin(b);
    bool second_branch = b > n->ends(), first_branch = n->branches == 2 && b == n->ends();
    Block& k = n->blocks[b];
    Conv &first = *k.first, &second = *k.second;
    backward_conv(*n, second, d, nullptr, nullptr, place(&second)[0],
                  [&](Scratch& s, int image, int at) {
                    float* to = s.in + at * first.padded();
                    activate(first, image, to, nullptr, same);
                    return to;
                  },
                  [&](int image, Tile t, int o, const V* r) {
                    through_relu(*n, first, nullptr, nullptr, image, t, o, r, n->inner);
                  });
    finish_norm(*n, first, 1, place(&first)[1], place(&first)[2]);
    if (first.stride == 2) {
      float* dweights[] = {place(&first)[0], k.shortcut ? place(k.shortcut)[0] : nullptr};
      backward_strided(*n, b, n->inner, d, dweights,
                       [&](int image, Tile t, int o, const V* r) { to_map(b, image, t, o, r, next); });
    } else {
      backward_conv(*n, first, n->inner, d, n->before(n->source(b)).y, place(&first)[0],
                    [&](Scratch&, int image, int) { return n->input(b, image); },
                    [&](int image, Tile t, int o, const V* r) {
        V sum[16];
        size_t start = ((size_t)image * first.blocks() + o) * first.side * first.side;
        UNROLL for (int e = 0; e < 16; e++) {
          size_t k = (start + (t.y + e / 4) * first.side + t.x + e % 4) * W;
          sum[e] = r[e] + at(d + k);
          if (first_branch) sum[e] += at(n->aside + k);
          if (second_branch) at(n->aside + k) = sum[e];
        }
        if (!second_branch) to_map(n->source(b), image, t, o, sum, next);
      });
    }
    if (second_branch) continue;
    finish(b);
    std::swap(d, next);
  }
  Conv& stem = n->stem();
  for (Scratch& s : n->scratch) memset(s.du, 0, 4 * packed(stem));
  for_groups(*n, 1, [&](Scratch& s, int image, int) {
    const float* in = n->images + (size_t)image * (stem.side + 2) * (stem.side + 2) * n->channels;
    const float* dy = through_norm(stem, image, d, s.dy);
    weights_gradient(stem, 1, &in, &dy, s, s.du);
  });
  collect(*n, stem, 0, place(&stem)[0]);
}
