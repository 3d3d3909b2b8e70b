// The room `text`, and texts in `base`. Many texts go in and out in one call, as blocks of bytes.
#include "answer.hpp"

#include "../../src/base/error.hpp"
#include "../../src/base/utf8.hpp"
#include "../../src/text/prompt.hpp"
#include "../../src/text/tokenizer.hpp"

#include <cstdint>
#include <cstdlib>
#include <new>

namespace {

// Texts, each behind its length in 4 bytes.
class Texts {
  public:
    Texts(const char* data, std::size_t size) : rest_(data, size) {}

    bool next(std::string_view& text) {
        if (rest_.empty()) return false;
        std::uint32_t length = 0;
        std::memcpy(&length, rest_.data(), sizeof length);
        text = rest_.substr(sizeof length, length);
        rest_.remove_prefix(sizeof length + length);
        return true;
    }

  private:
    std::string_view rest_;
};

class Out {
  public:
    template <typename T>
    void put(T value) {
        bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
    }
    void put_size(std::size_t size) { put(static_cast<std::uint32_t>(size)); }
    void put_text(const std::string& text) {
        put_size(text.size());
        bytes_ += text;
    }
    // 0, or a status and what was thrown.
    template <typename Work>
    void told(Work work) {
        const std::size_t before = bytes_.size();
        put_size(0);
        try {
            work();
        } catch (const lrt::Error& error) {
            bytes_.resize(before);
            put_size(error.status());
            put_text(error.what());
        }
    }
    char* copied(std::size_t* size) const {
        *size = bytes_.size();
        auto* copy = static_cast<char*>(std::malloc(bytes_.size() + 1));
        if (copy == nullptr) throw std::bad_alloc();
        std::memcpy(copy, bytes_.data(), bytes_.size());
        return copy;
    }

  private:
    std::string bytes_;
};

void keep(latentrt_log_level, const char* text, std::size_t length, void* user) {
    static_cast<std::vector<std::string>*>(user)->emplace_back(text, length);
}

}  // namespace

PROBE void probe_text_free(char* block) { std::free(block); }

// `embeddings`: for each textual inversion the number of its ids, and the ids. Returns null and a status for an error.
PROBE void* probe_tokenizer(const char* json, std::size_t size, const std::int64_t* facts,
                            const std::int64_t* embeddings, std::size_t embeddings_size, int* status, char* error) {
    lrt::TextEncoder encoder;
    encoder.tokenizer = "tokenizer/tokenizer.json";
    encoder.max_length = facts[0];
    encoder.bos = facts[1];
    encoder.eos = facts[2];
    encoder.pad = facts[3];
    for (std::size_t i = 0; i < embeddings_size; i += static_cast<std::size_t>(embeddings[i]) + 1)
        encoder.embeddings[std::to_string(i)].assign(embeddings + i + 1, embeddings + i + 1 + embeddings[i]);
    void* made = nullptr;
    *status = LATENTRT_OK;
    probe::told(error, [&] {
        try {
            made = new lrt::Tokenizer(std::string_view(json, size), encoder);
        } catch (const lrt::Error& thrown) {
            *status = thrown.status();
            throw;
        }
    });
    return made;
}

PROBE void probe_tokenizer_free(lrt::Tokenizer* tokenizer) { delete tokenizer; }

// For each text: the number of ids, then ids and the places of their pieces.
PROBE char* probe_located(const lrt::Tokenizer* tokenizer, const char* data, std::size_t size, std::size_t* out_size) {
    Texts texts(data, size);
    Out out;
    for (std::string_view text; texts.next(text);)
        out.told([&] {
            const auto located = tokenizer->located(text);
            out.put_size(located.size());
            for (const auto& [id, at] : located) out.put(id);
            for (const auto& [id, at] : located) out.put(static_cast<std::int64_t>(at));
        });
    return out.copied(out_size);
}

// For each prompt: rows, columns, ids, weights, tokens, dropped.
PROBE char* probe_chunks(const lrt::Tokenizer* tokenizer, int syntax, int split, const char* data, std::size_t size,
                         std::size_t* out_size) {
    Texts texts(data, size);
    Out out;
    for (std::string_view text; texts.next(text);)
        out.told([&] {
            const auto sections = lrt::parse(text, static_cast<latentrt_prompt_syntax>(syntax), {});
            const lrt::Chunks chunks = tokenizer->chunks(sections, split != 0);
            for (const std::int64_t side : chunks.ids.shape) out.put_size(static_cast<std::size_t>(side));
            for (const std::int64_t id : chunks.ids.values) out.put(id);
            for (const float weight : chunks.weights.values) out.put(weight);
            out.put_size(chunks.tokens);
            out.put_text(chunks.dropped);
        });
    return out.copied(out_size);
}

// For each prompt: warnings, then for each section its pieces, text and weight.
PROBE char* probe_parse(int syntax, const char* data, std::size_t size, std::size_t* out_size) {
    Texts texts(data, size);
    Out out;
    for (std::string_view text; texts.next(text);)
        out.told([&] {
            std::vector<std::string> warnings;
            const auto sections =
                lrt::parse(text, static_cast<latentrt_prompt_syntax>(syntax), lrt::Log(keep, &warnings));
            out.put_size(warnings.size());
            for (const std::string& warning : warnings) out.put_text(warning);
            out.put_size(sections.size());
            for (const lrt::Section& section : sections) {
                out.put_size(section.size());
                for (const lrt::Piece& piece : section) {
                    out.put_text(piece.text);
                    out.put(piece.weight);
                }
            }
        });
    return out.copied(out_size);
}

// For each text: whether it is UTF-8, its code points again as UTF-8, and how it is shown.
PROBE char* probe_utf8(std::size_t most, const char* data, std::size_t size, std::size_t* out_size) {
    Texts texts(data, size);
    Out out;
    for (std::string_view text; texts.next(text);) {
        const auto points = lrt::decoded(text);
        out.put_size(points ? 1 : 0);
        out.put_text(lrt::encoded(points.value_or(U"")));
        out.put_text(lrt::shown(text, most));
    }
    return out.copied(out_size);
}
