#!/usr/bin/env bash
# Builds the fuzz targets with Clang and its sanitizers, and runs each for some seconds on what corpus/ has.
#
#     native/tests/fuzz/run.sh [SECONDS] [TARGET…]
#
# New inputs are kept in out/fuzz/corpus, and inputs that fail in out/fuzz/failed: when the fault is mended, put them into
# corpus/, and into a test. The headers are those of `make native`, or of the folder HEADERS.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../../..
build=$root/out/fuzz
seconds=${1:-60}
shift || true

headers=${HEADERS:-$root/out/native/include}
[ -e "$headers/nlohmann/json.hpp" ] || "$root/native/fetch_headers.sh" "$headers"
cmake --log-level=WARNING -S "$root/native" -B "$build" -DHEADERS="$headers" -DCMAKE_BUILD_TYPE=None \
    -DCMAKE_C_COMPILER="${CC:-clang-19}" -DCMAKE_CXX_COMPILER="${CXX:-clang++-19}" -DCMAKE_CXX_FLAGS="-O1 -g1" \
    -DLATENTRT_FUZZ=ON -DLATENTRT_SANITIZE=address,undefined
if [ $# -eq 0 ]; then
    set -- $(cd "$here" && ls ./*.cpp | sed 's/.*\///; s/\.cpp$//' | grep -v '^replay$')
fi
cmake --build "$build" --parallel 2 --target "${@/#/fuzz_}"

mkdir -p "$build/failed"
export ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1
for target in "$@"; do
    echo "== $target, $seconds seconds"
    mkdir -p "$build/corpus/$target" "$here/corpus/$target"
    dictionary=$here/data/$target.dict
    "$build/tests/fuzz/fuzz_$target" "$build/corpus/$target" "$here/corpus/$target" -max_total_time="$seconds" \
        -timeout=20 -rss_limit_mb=2048 -max_len=16384 -print_final_stats=1 -verbosity=1 \
        -artifact_prefix="$build/failed/$target-" $([ -e "$dictionary" ] && echo "-dict=$dictionary")
done
