#!/bin/sh
# Builds the fuzz targets with libFuzzer and the sanitizers, and runs each of them. What is found stays in the folder.
#   native/tests/fuzz/run.sh FOLDER [SECONDS] [HEADERS]
set -eu
folder=$1 seconds=${2:-60} native=$(cd "$(dirname "$0")/../.." && pwd)
headers=${3:-$native/../out/native/include}
flags="-std=c++17 -g -O1 -fsanitize=address,undefined -fno-sanitize-recover=all -I$native/include -isystem $headers"
mkdir -p "$folder"
# Built anew each time: objects of different headers must not meet.
rm -f "$folder"/*.o
for source in "$native"/src/base/utf8.cpp "$native"/src/base/python_tables.cpp "$native"/src/text/*.cpp; do
    case $source in */conditioning.cpp) continue ;; esac
    # shellcheck disable=SC2086
    clang++-19 $flags -fsanitize=fuzzer-no-link -c "$source" -o "$folder/$(basename "$source").o"
done
for target in tokenizer_json vocabulary prompt; do
    # shellcheck disable=SC2086
    clang++-19 $flags -fsanitize=fuzzer "$native/tests/fuzz/$target.cpp" "$folder"/*.o -o "$folder/$target"
    mkdir -p "$folder/$target.corpus"
    "$folder/$target" -max_total_time="$seconds" -max_len=3000 -timeout=10 -artifact_prefix="$folder/$target." \
        "$folder/$target.corpus" "$native/tests/fuzz/corpus/$target"
done
