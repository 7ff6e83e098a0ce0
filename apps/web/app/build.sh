#!/bin/sh
# Puts the web app together: sh apps/web/app/build.sh [--compare] OUT [MODEL]. Copies the page, the package and a
# model (the shipped one, if none is named), and writes the hashes by which the service worker keeps them.
# --compare: the development build, with LiteRT.js and onnxruntime-web of benchmarks/node_modules beside it.
set -eu
app=$(cd "$(dirname "$0")" && pwd)
compare=
if [ "$1" = --compare ]; then compare=1 && shift; fi
model=$(realpath "${2:-$app/../../../runtime/shakespeare-int8.tflite}")
out=${1:?wanted a folder to write to}
rm -rf "$out"
mkdir -p "$out/tsm-runtime"
cp "$app"/*.js "$app"/*.css "$app"/*.html "$app"/*.svg "$app"/*.png "$app"/*.webmanifest "$model" "$out"
cp "$app"/../*.js "$app"/../*.wasm "$out/tsm-runtime"
if [ "$compare" ]; then
  sed -i 's|</head>|<script type="module" src="compare/compare.js"></script></head>|' "$out/index.html"
fi

cd "$out"
hash() { # as the `integrity` of fetch() has it
  printf 'sha256-%s' "$(sha256sum < "$1" | cut -c-64 | tr a-f A-F | basenc --base16 -d | base64)"
}
name=$(basename "$model")
printf '{"file": "%s", "version": "%s"}\n' "$name" "$(hash "$name")" > model.json
{
  echo "MODEL = \"$name\";"
  echo 'FILES = {'
  find . -type f ! -path ./sw.js ! -path ./hashes.js | sort | while read -r file; do
    printf '  "%s": "%s",\n' "${file#./}" "$(hash "$file")"
  done
  echo '};'
} > hashes.js

[ "$compare" ] || exit 0
root=$app/../../..
modules=$root/benchmarks/node_modules
mkdir -p compare/litert compare/onnxruntime
cp "$root/runtime/shakespeare-int8.tflite" "$root/models/shakespeare-int8.onnx" compare
cp "$modules"/@litertjs/core/wasm/litert_wasm_internal.* "$modules"/@litertjs/core/wasm/litert_wasm_compat_internal.* compare/litert
cp "$modules"/onnxruntime-web/dist/ort-wasm-simd-threaded.wasm "$modules"/onnxruntime-web/dist/ort-wasm-simd-threaded.mjs compare/onnxruntime
"$modules/.bin/esbuild" "$app/dev/compare.js" --bundle --format=esm --log-level=warning --outfile=compare/compare.js \
  --external:../tsm-runtime/index.js --external:../page.js
