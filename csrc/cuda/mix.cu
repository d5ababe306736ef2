// mix_embed: a block a position. Bytes: (k + 2) d s and 8 k + 4 of feedback for a mixed row, 2 d s for a plain one.
#include "embedding_rows.h"

namespace soft_mask::cuda {
namespace {

SOFT_MASK_DEVICE void write_recipe(const MixParams& p, int64_t position, Recipe& recipe) {
  const Token token = Token::at(p.tokens, p.table.rows, position);
  const int64_t source = source_of(p.tokens, position);
  float lambda = 0, probs[2] = {};
  int32_t ids[2] = {};
  if (token.mixed && token.known) {
    lambda = read_gate(p.feedback.gate).lambda(read(p.feedback.neg_entropy + source));
    if (lambda != 0) {
#pragma unroll
      for (int w = 0; w < 2; ++w) {
        const int j = w * kWarp + lane_index();
        if (j >= p.feedback.k) continue;
        probs[w] = read(p.feedback.probs + source * p.feedback.k + j);
        ids[w] = read(p.feedback.ids + source * p.feedback.k + j);
      }
    }
  }
  recipe.write(token.id, lambda, p.feedback.k, probs, ids, p.table.rows, Fault::feedback_ids, p.faults, position);
  if (!token.known && lane_index() == 0) {
    report(p.faults, Fault::input_ids, position);
    recipe.kind.set(Recipe::nothing);
  }
}

SOFT_MASK_KERNEL(kMixThreads, 8) mix_kernel(SOFT_MASK_PARAMS MixParams p) {
  auto& recipe = shared_memory<Recipe>();
  if (warp_index() == 0) write_recipe(p, block_index(), recipe);
  barrier();
  follow<kMixThreads>(recipe, p.feedback.k, p.table, p.out, block_index());
}

}  // namespace

void mix(const MixParams& p, const Launch& where) { launch("mix", mix_kernel, p.tokens.count, kMixThreads, p, where); }

}  // namespace soft_mask::cuda
