// CLIP's byte-level BPE: sections of a prompt to chunks of token ids. Knows nothing of prompt syntax.
#pragma once

#include "../base/array.hpp"
#include "../bundle/manifest.hpp"
#include "prompt.hpp"

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lrt {

// A prompt as input of the text encoder. ids and weights are (chunks, max_length): [bos, ids, eos, pad, …], the weights
// of bos, eos and pad are 1.
struct Chunks {
    Ids ids;
    Array<float> weights;
    std::size_t tokens = 0;  // of the whole prompt, without bos and eos
    std::string dropped;     // the text that did not fit, or ""
};

class Tokenizer {
  public:
    // `json` is the content of tokenizer.json; throws where it is not CLIP's kind of tokenizer, with what differs.
    Tokenizer(std::string_view json, const TextEncoder& facts);
    ~Tokenizer();
    Tokenizer(Tokenizer&&) noexcept;

    // Ids of a text, UTF-8, and the byte where the piece of each begins; textual inversions are expanded.
    std::vector<std::pair<std::int64_t, std::size_t>> located(std::string_view text) const;

    // `split` spreads long sections over several chunks instead of cutting them.
    Chunks chunks(const std::vector<Section>& sections, bool split) const;

    // Ids of a chunk, without bos and eos.
    std::size_t capacity() const;

  private:
    struct Tables;
    std::unique_ptr<const Tables> tables_;
};

}  // namespace lrt
