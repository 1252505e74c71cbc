// Runs the C++ step on arrays of exactly the size that it may touch; built with -fsanitize=address,undefined, which ends it at
// the first read or write beside them. `make asan`.
#include "../../../common/models/cpu_resnet.cpp"

#include <stdio.h>

static void run(int capacity, int channels, int side, int width, int blocks, int stages, int projection, int copies = 1,
                int branches = 1) {
  Net* n = create(capacity, channels, side, width, blocks, stages, projection, copies, branches);
  std::vector<std::vector<float>> kept;
  std::vector<float*> pointers, gradients;
  auto array = [&](size_t size, float value) {
    kept.emplace_back(size);
    for (size_t k = 0; k < size; k++) kept.back()[k] = value * (1 + k % 7 - k % 5);
    return kept.back().data();
  };
  for (auto& c : n->convs) {
    size_t weights = (size_t)c->co * c->taps * c->taps * c->ci;
    for (size_t size : {weights, (size_t)c->co, (size_t)c->co, (size_t)c->co, (size_t)c->co})
      pointers.push_back(array(size, 0.01f));
    for (size_t size : {weights, (size_t)c->co, (size_t)c->co}) gradients.push_back(array(size, 0));
  }
  int last = n->convs.back()->co;
  for (int threads : {1, 3, 2})
    for (int batch : {capacity, 1, capacity - 1}) {
      float *images = array((size_t)batch * side * side * channels, 0.5f), *features = array((size_t)batch * copies * branches * last, 0);
      forward(n, threads, batch, images, pointers.data(), 1, features);
      backward(n, features, gradients.data());
      forward(n, threads, batch, images, pointers.data(), 0, features);
    }
  destroy(n);
  printf("%d images of %dx%dx%d, width %d, %d x %d blocks%s%s%s: in bounds\n", capacity, side, side, channels, width, stages, blocks,
         projection ? " with projections" : "", copies > 1 ? " with shifts" : "", branches > 1 ? " with two branches" : "");
}

int main() {
  run(5, 3, 32, 16, 1, 3, 0);
  run(7, 3, 16, 16, 2, 3, 0);
  run(9, 1, 8, 32, 1, 2, 1);
  run(3, 3, 8, 48, 2, 1, 0);
  run(3, 3, 32, 64, 1, 4, 1);
  run(5, 3, 16, 16, 1, 3, 0, 9);
  run(5, 3, 16, 16, 2, 3, 0, 1, 2);
}
