// Texts to embeddings: tokenized, encoded, weighted. Knows text encoders by name, and nothing of what reads the result.
#pragma once

#include "../base/array.hpp"
#include "../base/log.hpp"
#include "tokenizer.hpp"

#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace lrt {

// The texts of one guidance group.
struct Side {
    // For each text encoder, one text for each image.
    std::vector<std::vector<std::string>> texts;
    // Whether all embeddings are zeros: no text was given, and the model was trained that way.
    bool zeros = false;

    std::size_t images() const { return texts.front().size(); }
};

// What the UNet reads besides latents and timestep; groups are ordered [negative, positive].
struct Conditioning {
    Floats context;                // (B, G, S, D)
    std::optional<Floats> pooled;  // (B, G, P)
};

// What a text encoder returned for rows of ids: some of its layers, (n, layers, max_length, D), and (n, P).
struct EncoderOutputs {
    Floats hidden_states;
    std::optional<Floats> pooled;
};

// Runs a text encoder, by the index of its facts, on ids (n, max_length); returns these layers alone.
using RunEncoder =
    std::function<EncoderOutputs(std::size_t encoder, const Ids& ids, const std::vector<std::int64_t>& layers)>;

struct Encoding {
    latentrt_prompt_syntax syntax = LATENTRT_SYNTAX_PLAIN;
    bool split = false;          // long texts over several chunks
    std::int64_t clip_skip = 0;  // for the positive texts alone, as in diffusers
};

// Tokens of all different texts of a call, for each text encoder.
class Tokens {
  public:
    // `sides` are the groups that are computed, [negative, positive] or [positive]. Throws for texts that are too long.
    Tokens(const std::vector<Side>& sides, const std::vector<Tokenizer>& tokenizers, const Encoding& encoding,
           const Log& log);

    bool empty() const { return of_encoder_.empty(); }

  private:
    friend class Encoded;
    struct Row {
        std::string text;
        Chunks chunks;
    };
    void warn_of_cuts(std::size_t capacity, const Log& log) const;
    void check_lengths(const std::vector<Side>& sides) const;

    std::vector<std::vector<Row>> of_encoder_;
};

// What the text encoders returned for a call's tokens.
class Encoded {
  public:
    Encoded(const Tokens& tokens, const RunEncoder& run, std::int64_t clip_skip);

    Conditioning conditioning(const std::vector<Side>& sides, const std::vector<TextEncoder>& encoders,
                              std::int64_t clip_skip) const;

  private:
    struct Text {
        std::string text;
        std::vector<std::size_t> rows;  // of the outputs, one for each chunk
        const Chunks* chunks = nullptr;
    };
    struct OfEncoder {
        EncoderOutputs outputs;
        std::vector<Text> texts;
    };
    static OfEncoder run_rows(const std::vector<Tokens::Row>& rows, const RunEncoder& run, std::size_t encoder,
                              const std::vector<std::int64_t>& layers);
    void write_states(std::size_t encoder, const std::string& text, bool skipped, std::size_t length, float* out,
                      std::size_t width) const;

    std::vector<OfEncoder> of_encoder_;
};

}  // namespace lrt
