#include "transformer.h"

#include <algorithm>
#include <cmath>

#include "caches.h"
#include "shape.h"

namespace dyndeploy::cpu {
namespace {

struct Range {
  int begin;
  int end;
  int size() const { return end - begin; }
};

Range part(int begin, int end, int index, int parts) {
  const auto at = [=](int i) {
    return begin + static_cast<int>(static_cast<std::int64_t>(end - begin) * i / parts);
  };
  return {at(index), at(index + 1)};
}

// Below this many multiply-adds a fork costs more than the second thread brings.
constexpr std::int64_t kWorthForking = 1 << 20;

// Numbers of one block of a product's rows.
int unit(const Isa& isa) { return kBlock * isa.inputs_per_row; }

std::size_t size_of(std::int64_t floats) { return static_cast<std::size_t>(floats); }

double exact_gelu(double x) { return 0.5 * x * (1.0 + std::erf(x * std::sqrt(0.5))); }

// Pieces of memory one after the other; without a base only their size is found.
class Carver {
 public:
  explicit Carver(char* base) : base_(base) {}
  float* floats(std::size_t count) {
    float* const piece = base_ ? reinterpret_cast<float*>(base_ + used_) : nullptr;
    used_ += (count * sizeof(float) + 63) / 64 * 64;
    return piece;
  }
  std::size_t used() const { return used_; }

 private:
  char* base_;
  std::size_t used_ = 0;
};

// The sizes of a matrix of (output_slots * outputs, input_slots * inputs).
SlottedMatrix slotted(const Isa& isa, int output_slots, int outputs, int padded_outputs, int input_slots,
                      int inputs) {
  SlottedMatrix m;
  m.output_slots = output_slots;
  m.outputs = outputs;
  m.panels = ceil_to_int(padded_outputs, isa.panel_width);
  m.input_slots = input_slots;
  m.inputs = inputs;
  m.blocks = ceil_to_int(inputs, unit(isa));
  m.panel_stride = std::ptrdiff_t{kBlock} * input_slots * m.blocks * isa.panel_width;
  return m;
}

// Takes the memory of a matrix and, with some, fills it.
void place(const Isa& isa, const float* weights, const float* bias, Carver& carver, SlottedMatrix& m) {
  const int PW = isa.panel_width, panels = m.output_slots * m.panels;
  float* const base = carver.floats(size_of(m.panel_stride * panels));
  float* const biases = carver.floats(size_of(std::int64_t{panels} * PW));
  if (!base) return;
  m.base = base;
  m.bias = biases;
  std::fill(base, base + m.panel_stride * panels, 0.0f);
  std::fill(biases, biases + std::ptrdiff_t{panels} * PW, 0.0f);
  const std::ptrdiff_t row = static_cast<std::ptrdiff_t>(m.input_slots) * m.inputs;
  const std::unique_ptr<float[]> rows(new float[size_of(std::int64_t{PW} * m.inputs)]);
  for (int slot = 0; slot < m.output_slots; ++slot) {
    for (int p = 0; p < m.panels; ++p) {
      const int count = std::min(PW, m.outputs - p * PW);
      if (count <= 0) continue;
      const int first = slot * m.outputs + p * PW, panel = slot * m.panels + p;
      std::copy(bias + first, bias + first + count, biases + std::ptrdiff_t{panel} * PW);
      for (int input = 0; input < m.input_slots; ++input) {
        for (int i = 0; i < count; ++i) {
          const float* const from =
              weights + (first + i) * row + static_cast<std::ptrdiff_t>(input) * m.inputs;
          std::copy(from, from + m.inputs, rows.get() + static_cast<std::ptrdiff_t>(i) * m.inputs);
        }
        PackSource source;
        source.weights = rows.get();
        source.inputs = m.inputs;
        source.outputs = count;
        isa.pack(source, 0, 1,
                 base + panel * m.panel_stride + std::ptrdiff_t{kBlock} * input * m.blocks * PW);
      }
    }
  }
}

}  // namespace

PackedTransformer::PackedTransformer(const Isa& isa, const TransformerLayer& layer,
                                     const TransformerWeights& weights, Arena& arena)
    : isa_(&isa), layer_(layer) {
  const int D = layer.width, A = layer.heads, d = layer.depth, F = layer.hidden;
  const bool inputs = layer.skips_heads && layer.head_mode == HeadMode::kInputs;
  const bool hidden = layer.skips_heads && layer.head_mode == HeadMode::kHidden;
  const int U = unit(isa), units = hidden ? A : 1;
  qkv_ = slotted(isa, 3 * A, d, round_up(d, U), 1, D);
  proj_ = slotted(isa, 1, D, D, A, d);
  fc1_ = slotted(isa, units, F / units, round_up(F / units, U), inputs ? A : 1, inputs ? d : D);
  fc2_ = slotted(isa, 1, D, D, units, F / units);
  const auto carve = [&](Carver& carver, bool fill) {
    place(isa, weights.qkv, weights.qkv_bias, carver, qkv_);
    place(isa, weights.proj, weights.proj_bias, carver, proj_);
    place(isa, weights.fc1, weights.fc1_bias, carver, fc1_);
    place(isa, weights.fc2, weights.fc2_bias, carver, fc2_);
    const auto copied = [&](const float* from) -> const float* {
      float* const to = carver.floats(size_of(D));
      if (fill) std::copy(from, from + D, to);
      return to;
    };
    norm1_ = copied(weights.norm1);
    norm1_bias_ = copied(weights.norm1_bias);
    norm2_ = copied(weights.norm2);
    norm2_bias_ = copied(weights.norm2_bias);
    if (inputs || hidden) {
      float* const constant = carver.floats(size_of(D));
      for (int n = 0; fill && n < D; ++n) {
        double sum = weights.fc2_bias[n];
        for (int f = 0; inputs && f < F; ++f)
          sum += exact_gelu(weights.fc1_bias[f]) * weights.fc2[static_cast<std::ptrdiff_t>(n) * F + f];
        constant[n] = static_cast<float>(sum);
      }
      mlp_without_heads_ = constant;
    }
  };
  Carver measure(nullptr);
  carve(measure, false);
  memory_ = arena.take(measure.used());
  Carver carver(static_cast<char*>(memory_.get()));
  carve(carver, true);
}

namespace {

// What one image computes.
struct Decisions {
  bool attention = true;
  bool mlp = true;
  int tokens = 0;                         // kept
  const std::int32_t* token = nullptr;    // nullptr: all
  const std::int32_t* dropped = nullptr;  // the others
  int heads = 0;                          // kept
  const std::int32_t* head = nullptr;     // those
  // Per head: it attends. A head that is kept but does not passes its values on. nullptr: all do.
  const std::uint8_t* attends = nullptr;

  bool passes(int h) const { return attends && !attends[h]; }
};

// What a thread computes with.
struct Scratch {
  float* rows;      // normalised rows
  float* attended;  // results of the attention
  float* hidden;    // rows of hidden units
  float* sums;
  float* attention;  // TileAttention::scratch
  float* keys;       // panels of one head's keys
  float* queries;    // of one head; where heads are one after the other
  float* key_rows;
  float* values;
  int* edges;
  std::int32_t* block_rows;
};

struct Context {
  const Isa* isa;
  const PackedTransformer* weights;
  TransformerLayer layer;
  int tokens;
  int parts;                   // threads that share an image
  int head_columns;            // numbers of a head, padded
  std::ptrdiff_t head_floats;  // of all rows of a head
  int row_floats;              // of a normalised row of all channels
  int block_rows;              // of the MLP
  const float* x;
  float* y;
  const Decisions* decisions;
  Scratch* scratch;  // one per worker
  // Of one image, where threads share it: [kept head][row][head_columns].
  float* queries;
  float* key_rows;
  float* values;
};

// Edges of tiles that hold rows [begin, end).
RowTiles tiles_of(const Context& c, Range rows, int* edges) {
  const int count = ceil_to_int(rows.size(), c.isa->product_rows);
  for (int t = 0; t <= count; ++t)
    edges[t] = rows.begin + static_cast<int>(static_cast<std::int64_t>(rows.size()) * t / std::max(count, 1));
  return {edges, count};
}

// The rows of B at which the blocks of some input slots begin; returns how many blocks.
int blocks_of(const SlottedMatrix& m, const std::int32_t* slots, int count, std::int32_t* rows) {
  int n = 0;
  for (int i = 0; i < count; ++i) {
    const int slot = slots ? slots[i] : i;
    for (int b = 0; b < m.blocks; ++b) rows[n++] = (slot * m.blocks + b) * kBlock;
  }
  return n;
}

TileProduct product_of(const Context& c, const SlottedMatrix& m, int output_slot, const RowTiles& tiles,
                       const float* a, int blocks, const Scratch& s) {
  TileProduct p;
  p.tiles = tiles;
  p.a = a;
  p.a_row = std::ptrdiff_t{blocks} * kBlock;
  p.blocks = blocks;
  p.block_rows = s.block_rows;
  p.b = m.base + m.panel_stride * output_slot * m.panels;
  p.row_stride = c.isa->panel_width;
  p.panel_stride = m.panel_stride;
  p.bias = m.bias + std::ptrdiff_t{output_slot} * m.panels * c.isa->panel_width;
  p.sums = s.sums;
  return p;
}

const float* slot_base(const SlottedMatrix& m, int slot) { return m.base + m.panel_stride * slot * m.panels; }

void norm(const Context& c, const float* x, const float* weight, const float* bias, const std::int32_t* index,
          const RowTiles& tiles, const std::int32_t* starts, int parts, int length, float* out) {
  NormRows n;
  n.x = x;
  n.stride = c.layer.width;
  n.index = index;
  n.channels = c.layer.width;
  n.epsilon = c.layer.epsilon;
  n.weight = weight;
  n.bias = bias;
  n.starts = starts;
  n.parts = parts;
  n.length = length;
  const std::ptrdiff_t row = std::ptrdiff_t{kBlock} * parts * ceil_to_int(length, unit(*c.isa));
  for (int t = 0; t < tiles.count; ++t) {
    n.out = out + row * tiles.before(t);
    n.tile_rows = tiles.rows(t);
    c.isa->norm_rows(n, tiles.edges[t], tiles.edges[t + 1]);
  }
}

// Queries, keys and values of one head, the slot-th that is kept, for the rows of some tiles.
void project_head(const Context& c, const Decisions& d, const RowTiles& tiles, int slot, const Scratch& s,
                  float* queries, float* keys, float* values) {
  const SlottedMatrix& m = c.weights->qkv();
  const int A = c.layer.heads;
  const int head = d.head[slot];
  const int blocks = blocks_of(m, nullptr, 1, s.block_rows);
  const std::ptrdiff_t first = static_cast<std::ptrdiff_t>(tiles.edges[0]) * c.head_columns;
  for (int which = d.passes(head) ? 2 : 0; which < 3; ++which) {
    TileProduct p = product_of(c, m, which * A + head, tiles, s.rows, blocks, s);
    p.columns = c.head_columns;
    p.out_row = c.head_columns;
    p.packed = which == 0;
    p.out = which == 0 ? queries + first : which == 1 ? keys : values;
    if (which < 2)
      p.after = slot_base(m, (which + 1) * A + head);
    else if (slot + 1 < d.heads)
      p.after = slot_base(m, d.head[slot + 1]);
    c.isa->tile_product(p, 0, m.panels);
  }
}

void zero_behind(float* values, int count, int columns) {
  std::fill(values + static_cast<std::ptrdiff_t>(count) * columns,
            values + static_cast<std::ptrdiff_t>(round_up(count, kBlock)) * columns, 0.0f);
}

// Attention of the queries of some tiles, whose results take the slot-th place in rows of `attended_row`
// floats.
void attend_head(const Context& c, const Decisions& d, const RowTiles& tiles, int slot, const Scratch& s,
                 const float* queries, const float* keys, const float* values, std::ptrdiff_t attended_row) {
  const auto place = [&](int t) {
    return s.attended + attended_row * tiles.before(t) +
           static_cast<std::ptrdiff_t>(slot) * tiles.rows(t) * c.head_columns / c.isa->inputs_per_row;
  };
  if (d.passes(d.head[slot])) {
    const std::int32_t zero = 0;
    NormRows n;
    n.x = values;
    n.stride = c.head_columns;
    n.starts = &zero;
    n.parts = 1;
    n.length = c.head_columns;
    for (int t = 0; t < tiles.count; ++t) {
      n.out = place(t);
      n.tile_rows = tiles.rows(t);
      c.isa->norm_rows(n, tiles.edges[t], tiles.edges[t + 1]);
    }
    return;
  }
  KeyPanels k;
  k.keys = keys;
  k.stride = c.head_columns;
  k.count = d.tokens;
  k.depth = c.head_columns;
  k.out = s.keys;
  c.isa->key_panels(k);
  TileAttention a;
  a.depth = c.head_columns;
  a.keys = s.keys;
  a.values = values;
  a.value_stride = c.head_columns;
  a.count = d.tokens;
  a.columns = c.head_columns;
  a.scale = c.layer.scale;
  a.scratch = s.attention;
  for (int t = 0; t < tiles.count; ++t) {
    a.queries = queries + static_cast<std::ptrdiff_t>(tiles.edges[t]) * c.head_columns;
    a.rows = tiles.rows(t);
    a.out = place(t);
    c.isa->attend(a);
  }
}

void project_output(const Context& c, const Decisions& d, const RowTiles& tiles, const float* x, float* y,
                    const Scratch& s) {
  const SlottedMatrix& m = c.weights->proj();
  const int blocks = blocks_of(m, d.head, d.heads, s.block_rows);
  TileProduct p = product_of(c, m, 0, tiles, s.attended, blocks, s);
  p.columns = c.layer.width;
  p.out = y;
  p.out_row = c.layer.width;
  p.residual = x;
  p.index = d.token;
  if (!blocks) {
    for (int r = tiles.edges[0]; r < tiles.edges[tiles.count]; ++r) {
      const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(d.token ? d.token[r] : r) * c.layer.width;
      for (int i = 0; i < c.layer.width; ++i) y[at + i] = x[at + i] + m.bias[i];
    }
    return;
  }
  c.isa->tile_product(p, 0, m.panels);
}

// The MLP of rows [rows.begin, rows.end) of a list.
void mlp(const Context& c, const Decisions& d, Range all, const std::int32_t* index, const float* x, float* y,
         const Scratch& s) {
  const PackedTransformer& w = *c.weights;
  const SlottedMatrix &fc1 = w.fc1(), &fc2 = w.fc2();
  const int D = c.layer.width;
  if (w.mlp_without_heads() && !d.heads) {
    const float* const constant = w.mlp_without_heads();
    for (int r = all.begin; r < all.end; ++r) {
      const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(index ? index[r] : r) * D;
      for (int i = 0; i < D; ++i) y[at + i] = x[at + i] + constant[i];
    }
    return;
  }
  const bool by_inputs = fc1.input_slots > 1, by_units = fc1.output_slots > 1;
  std::int32_t zero = 0;
  const std::int32_t* starts = &zero;
  std::int32_t* const list = s.block_rows + c.row_floats;  // room behind the blocks
  if (by_inputs) {
    for (int i = 0; i < d.heads; ++i) list[i] = d.head[i] * c.layer.depth;
    starts = list;
  }
  const int parts = by_inputs ? d.heads : 1, units = by_units ? d.heads : 1;
  const int blocks = ceil_to_int(all.size(), c.block_rows);
  for (int i = 0; i < blocks; ++i) {
    const Range rows = part(all.begin, all.end, i, blocks);
    const RowTiles tiles = tiles_of(c, rows, s.edges);
    norm(c, x, w.norm2(), w.norm2_bias(), index, tiles, starts, parts, fc1.inputs, s.rows);
    const int depth1 = blocks_of(fc1, by_inputs ? d.head : nullptr, parts, s.block_rows);
    const std::ptrdiff_t hidden_row = std::ptrdiff_t{kBlock} * units * fc2.blocks;
    for (int u = 0; u < units; ++u) {
      const int slot = by_units ? d.head[u] : 0;
      TileProduct p = product_of(c, fc1, slot, tiles, s.rows, depth1, s);
      p.columns = fc2.blocks * unit(*c.isa);
      p.packed = p.pairs = p.gelu = true;
      p.out_row = hidden_row;
      p.after = u + 1 < units ? slot_base(fc1, d.head[u + 1]) : nullptr;
      p.out = s.hidden;
      p.out_column = u * p.columns;
      c.isa->tile_product(p, 0, fc1.panels);
    }
    const int depth2 = blocks_of(fc2, by_units ? d.head : nullptr, units, s.block_rows);
    TileProduct p = product_of(c, fc2, 0, tiles, s.hidden, depth2, s);
    p.columns = D;
    p.out = y;
    p.out_row = D;
    p.residual = x;
    p.index = index;
    c.isa->tile_product(p, 0, fc2.panels);
  }
}

void copy_rows(const Context& c, const std::int32_t* index, Range rows, const float* x, float* y) {
  for (int r = rows.begin; r < rows.end; ++r) {
    const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(index ? index[r] : r) * c.layer.width;
    std::copy(x + at, x + at + c.layer.width, y + at);
  }
}

bool mlp_keeps_rows(const Context& c, const Decisions& d) { return c.layer.token_mlp || !d.token; }

// Steps of one image; `part` of c.parts.
void image_projections(const Context& c, int image, int index, const Scratch& s) {
  const Decisions& d = c.decisions[image];
  if (!d.attention || !d.heads) return;
  const float* const x = c.x + static_cast<std::ptrdiff_t>(image) * c.tokens * c.layer.width;
  const Range rows = part(0, d.tokens, index, c.parts);
  const RowTiles tiles = tiles_of(c, rows, s.edges);
  const std::int32_t zero = 0;
  norm(c, x, c.weights->norm1(), c.weights->norm1_bias(), d.token, tiles, &zero, 1, c.layer.width, s.rows);
  for (int slot = 0; slot < d.heads; ++slot) {
    const std::ptrdiff_t at = slot * c.head_floats;
    project_head(c, d, tiles, slot, s, c.queries + at, c.key_rows + at, c.values + at);
    if (index == 0) zero_behind(c.values + at, d.tokens, c.head_columns);
  }
}

void image_rest(const Context& c, int image, int index, const Scratch& s) {
  const Decisions& d = c.decisions[image];
  const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(image) * c.tokens * c.layer.width;
  const float* const x = c.x + at;
  float* const y = c.y + at;
  const bool copies = x != y;
  const Range rows = part(0, d.tokens, index, c.parts);
  const RowTiles tiles = tiles_of(c, rows, s.edges);
  if (d.attention && rows.size()) {
    const std::ptrdiff_t attended_row =
        static_cast<std::ptrdiff_t>(d.heads) * c.head_columns / c.isa->inputs_per_row;
    const bool alone = c.parts == 1;
    if (alone && d.heads) {
      const std::int32_t zero = 0;
      norm(c, x, c.weights->norm1(), c.weights->norm1_bias(), d.token, tiles, &zero, 1, c.layer.width,
           s.rows);
    }
    for (int slot = 0; slot < d.heads; ++slot) {
      if (alone) {
        project_head(c, d, tiles, slot, s, s.queries, s.key_rows, s.values);
        zero_behind(s.values, d.tokens, c.head_columns);
        attend_head(c, d, tiles, slot, s, s.queries, s.key_rows, s.values, attended_row);
      } else {
        const std::ptrdiff_t from = slot * c.head_floats;
        attend_head(c, d, tiles, slot, s, c.queries + from, c.key_rows + from, c.values + from, attended_row);
      }
    }
    project_output(c, d, tiles, x, y, s);
  }
  const bool same = mlp_keeps_rows(c, d);
  if (d.mlp && same && rows.size()) mlp(c, d, rows, d.token, d.attention ? y : x, y, s);
  if (!copies) return;
  if (!d.attention && !(d.mlp && same)) copy_rows(c, d.token, rows, x, y);
  copy_rows(c, d.dropped, part(0, d.token ? c.tokens - d.tokens : 0, index, c.parts), x, y);
}

// The MLP of all rows behind the attention of some.
void image_full_mlp(const Context& c, int image, int index, const Scratch& s) {
  const Decisions& d = c.decisions[image];
  if (!d.mlp || mlp_keeps_rows(c, d)) return;
  float* const y = c.y + static_cast<std::ptrdiff_t>(image) * c.tokens * c.layer.width;
  mlp(c, d, part(0, c.tokens, index, c.parts), nullptr, y, y, s);
}

bool is_on(const float* mask, std::ptrdiff_t i) { return !mask || mask[i] > 0.5f; }

Decisions decide(const TransformerCall& call, int image, Workspace& workspace) {
  const TransformerLayer& layer = call.weights->layer();
  Decisions d;
  d.attention = is_on(call.attention_mask, image);
  d.mlp = is_on(call.mlp_mask, image);
  d.tokens = call.tokens;
  if (call.token_mask) {
    auto* kept = workspace.take<std::int32_t>(size_of(call.tokens));
    auto* dropped = workspace.take<std::int32_t>(size_of(call.tokens));
    int n = 0, others = 0;
    for (int t = 0; t < call.tokens; ++t)
      (is_on(call.token_mask, static_cast<std::ptrdiff_t>(image) * call.tokens + t) ? kept[n++]
                                                                                    : dropped[others++]) = t;
    if (n < call.tokens) {
      d.tokens = n;
      d.token = kept;
      d.dropped = dropped;
    }
  }
  auto* heads = workspace.take<std::int32_t>(size_of(layer.heads));
  auto* attends = workspace.take<std::uint8_t>(size_of(layer.heads));
  const bool passes = layer.head_mode == HeadMode::kAttention;
  for (int a = 0; a < layer.heads; ++a) {
    attends[a] = is_on(call.head_mask, static_cast<std::ptrdiff_t>(image) * layer.heads + a);
    if (attends[a] || passes) heads[d.heads++] = a;
  }
  d.head = heads;
  if (passes && call.head_mask) d.attends = attends;
  return d;
}

}  // namespace

void run_transformer(const TransformerCall& call, Workspace& workspace, const ThreadPool& pool) {
  const PackedTransformer& w = *call.weights;
  const Isa& isa = w.isa();
  Context c{};
  c.isa = &isa;
  c.weights = &w;
  c.layer = w.layer();
  c.tokens = call.tokens;
  c.x = call.x;
  c.y = call.y;
  const int T = call.tokens, A = c.layer.heads, U = unit(isa);
  const std::int64_t work = std::int64_t{call.batch} * T * c.layer.width *
                            (std::int64_t{4} * A * c.layer.depth + std::int64_t{2} * c.layer.hidden);
  ThreadPool limited = pool;
  if (work < kWorthForking) limited.threads = 1;
  const int threads = std::max(1, limited.threads);
  // Enough images to keep all threads busy until the end: each stays with one thread.
  constexpr int kImagesPerThread = 4;
  c.parts = call.batch >= kImagesPerThread * threads ? 1 : threads;
  c.head_columns = round_up(c.layer.depth, U);
  auto* decisions = workspace.take<Decisions>(size_of(call.batch));
  for (int i = 0; i < call.batch; ++i) decisions[i] = decide(call, i, workspace);
  c.decisions = decisions;

  const SlottedMatrix &fc1 = w.fc1(), &fc2 = w.fc2(), &qkv = w.qkv(), &proj = w.proj();
  const auto row_floats = [](const SlottedMatrix& m) { return kBlock * m.input_slots * m.blocks; };
  c.row_floats = std::max({row_floats(qkv), row_floats(proj), row_floats(fc1), row_floats(fc2)});
  // Hidden units stay in L2 beside a panel of weights.
  const std::int64_t hidden_bytes = std::int64_t{4} * row_floats(fc2);
  const int fit = static_cast<int>(std::max<std::int64_t>(1, caches().l2 * 7 / 10 / hidden_bytes));
  c.block_rows = std::max(fit, isa.product_rows);
  const int rows = ceil_to_int(T, c.parts);
  const std::int64_t slack =
      std::int64_t{kMaxTileRows} * kBlock;  // that matrix tiles read behind the last row
  const std::int64_t padded = round_up(T, std::max(kBlock, isa.panel_width));
  const std::int64_t head = padded * c.head_columns;
  c.head_floats = static_cast<std::ptrdiff_t>(head);
  const int workers = threads;
  c.scratch = workspace.take<Scratch>(size_of(workers));
  for (int i = 0; i < workers; ++i) {
    Scratch& s = c.scratch[i];
    s.rows = workspace.take<float>(
        size_of(std::int64_t{rows} * std::max(row_floats(qkv), row_floats(fc1)) + slack));
    s.attended = workspace.take<float>(size_of(std::int64_t{rows} * row_floats(proj) + slack));
    s.hidden =
        workspace.take<float>(size_of(std::int64_t{std::min(rows, c.block_rows)} * row_floats(fc2) + slack));
    s.sums = workspace.take<float>(size_of(std::int64_t{rows} * isa.panel_width));
    s.attention = workspace.take<float>(kAttentionFloats + size_of(std::int64_t{16} * c.head_columns));
    s.keys = workspace.take<float>(size_of(head));
    s.queries = c.parts == 1 ? workspace.take<float>(size_of(head)) : nullptr;
    s.key_rows = c.parts == 1 ? workspace.take<float>(size_of(head)) : nullptr;
    s.values = c.parts == 1 ? workspace.take<float>(size_of(head)) : nullptr;
    s.edges = workspace.take<int>(size_of(rows) + 2);
    s.block_rows = workspace.take<std::int32_t>(size_of(c.row_floats + A));
  }
  if (c.parts > 1) {
    c.queries = workspace.take<float>(size_of(head * A));
    c.key_rows = workspace.take<float>(size_of(head * A));
    c.values = workspace.take<float>(size_of(head * A));
  }

  if (c.parts == 1) {
    const auto body = [&](int task, int worker) {
      image_rest(c, task, 0, c.scratch[worker]);
      image_full_mlp(c, task, 0, c.scratch[worker]);
    };
    const Phase phase(call.batch, body);
    run_phases(limited, &phase, 1);
    return;
  }
  struct Step {
    const Context* context;
    int image;
    void (*run)(const Context&, int, int, const Scratch&);
  };
  auto* steps = workspace.take<Step>(size_of(3 * std::int64_t{call.batch}));
  auto* phases = workspace.take<Phase>(size_of(3 * std::int64_t{call.batch}));
  int count = 0;
  const auto add = [&](int image, void (*run)(const Context&, int, int, const Scratch&)) {
    steps[count] = {&c, image, run};
    Phase& phase = phases[count];
    phase.tasks = c.parts;
    phase.state = &steps[count++];
    phase.run = [](const void* state, int task, int worker) {
      const Step& step = *static_cast<const Step*>(state);
      step.run(*step.context, step.image, task, step.context->scratch[worker]);
    };
  };
  for (int i = 0; i < call.batch; ++i) {
    const Decisions& d = decisions[i];
    if (d.attention && d.heads) add(i, &image_projections);
    if (d.attention || d.mlp || c.x != c.y) add(i, &image_rest);
    if (d.mlp && !mlp_keeps_rows(c, d)) add(i, &image_full_mlp);
  }
  run_phases(limited, phases, count);
}

}  // namespace dyndeploy::cpu
