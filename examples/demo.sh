#!/usr/bin/env bash
# The first minutes with Penstock: a click log in, a trained model out. `make demo` runs it.
set -euo pipefail
penstock=${PENSTOCK:-penstock}
folder=${1:-.demo}
examples=$(cd "$(dirname "$0")" && pwd)

step() {
    printf '\n\033[1m%s\033[0m\n$ penstock %s\n' "$1" "${*:2}"
    "$penstock" "${@:2}"
}

rm -rf "$folder"
mkdir -p "$folder"
cd "$folder"

step "1. Make a click log whose best possible logloss is known: a file to learn from, and a later one." \
    make-clicks clicks/ --rows 1_100_000
step "2. Learn the first file in one pass. (The first run on a machine compiles kernels, once: 10 to 20 s.)" \
    train clicks/clicks-00000.parquet --label clicked --time time --cross c1,c2 -o model/
step "3. Measure the model on the later file, which it has not seen." \
    evaluate model/ clicks/clicks-00001.parquet
step "4. Score those rows." \
    predict model/ clicks/clicks-00001.parquet -o scores.parquet --keep time,clicked
step "5. Look into the model: what it was learnt from, and its strongest features." \
    inspect model/ --top 10

cat <<END

All of it is in $folder/. The model is plain Parquet and JSON: any tool reads it.
What to try next, from there, with penstock = $penstock:

  penstock train clicks/clicks-00000.parquet --label clicked --time time --passes 2 -o other/
  penstock train clicks/clicks-00000.parquet --label clicked --time time --optimizer ftrl,alpha=0.05,l1=1 -o sparse/
  penstock train YOUR.parquet --label YOUR_LABEL -o yours/        also CSV, TSV, Arrow, libsvm; folders; URLs
  penstock train clicks/clicks-00000.parquet --label clicked --time time --servers 2 --workers 2 -o cluster/
  penstock compare clicks/clicks-00000.parquet --label clicked --consistency bsp --consistency asp    a page of what each costs
  penstock serve ctr=model/             answers over HTTP; then: curl localhost:8080/predict -d '{"c1": "x", "n1": 2}'
  penstock dash cluster/                a live page of a run, while it goes on or after
  $(dirname "$penstock")/python $examples/from_events.py    events in a log, a query to examples, late clicks that correct labels
  penstock train --help
END
