// A tokenizer.json as CLIP's with another model, for the fuzz targets.
#pragma once

#include "../../src/bundle/manifest.hpp"

#include <string>

namespace fuzz {

inline std::string tokenizer_json(const std::string& vocab, const std::string& merges, const std::string& added) {
    return R"({"version":"1.0","truncation":null,"padding":null,"added_tokens":)" + added +
           R"(,"normalizer":{"type":"Sequence","normalizers":[{"type":"NFC"},{"type":"Replace","pattern":)"
           R"({"Regex":"\\s+"},"content":" "},{"type":"Lowercase"}]},"pre_tokenizer":{"type":"Sequence",)"
           R"("pretokenizers":[{"type":"Split","pattern":{"Regex":"<\\|startoftext\\|>|<\\|endoftext\\|>|)"
           R"('s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+"},"behavior":"Removed","invert":true},)"
           R"({"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}]},)"
           R"("post_processor":null,"decoder":null,"model":{"type":"BPE","dropout":null,"unk_token":"<|endoftext|>",)"
           R"("continuing_subword_prefix":"","end_of_word_suffix":"</w>","fuse_unk":false,)"
           R"("byte_fallback":false,"ignore_merges":false,"vocab":)" +
           vocab + R"(,"merges":)" + merges + "}}";
}

inline const char* const VOCAB =
    R"({"!":0,"a":1,"b":2,"c":3,"ab":4,"bc":5,"abc":6,"a</w>":7,"b</w>":8,"c</w>":9,"bc</w>":10,"abc</w>":11,)"
    R"("Ã":12,"©</w>":13,"Ã©</w>":14,"ab</w>":15,",</w>":16,"<|startoftext|>":17,"<|endoftext|>":18})";
inline const char* const MERGES = R"(["a b",["b","c"],["ab","c"],"a b</w>","b c</w>","a bc</w>",["Ã","©</w>"]])";
inline const char* const ADDED =
    R"([{"id":17,"content":"<|startoftext|>","single_word":false,"lstrip":false,"rstrip":false,"normalized":true,)"
    R"("special":true},{"id":18,"content":"<|endoftext|>","single_word":false,"lstrip":false,"rstrip":false,)"
    R"("normalized":false,"special":true},{"id":19,"content":"<Cat>","single_word":false,"lstrip":false,)"
    R"("rstrip":false,"normalized":true,"special":false}])";

inline lrt::TextEncoder facts() {
    lrt::TextEncoder encoder;
    encoder.tokenizer = "tokenizer.json";
    encoder.max_length = 9;
    encoder.bos = 17;
    encoder.eos = encoder.pad = 18;
    encoder.embeddings = {{"<Cat>", {19, 20, 21}}};
    return encoder;
}

}  // namespace fuzz
