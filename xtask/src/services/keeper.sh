# Ends what a run left running and removes its directory, once the pipe on standard input closes. The kernel closes that
# pipe however the run ends, `kill -9` included. What was started last ends first, since it needs the others to end
# cleanly.
cat >/dev/null
ls -t "$1"/*.pid | while read -r file; do
    read -r pid <"$file"
    kill -INT "$pid" 2>/dev/null || continue
    tenths=0
    while kill -0 "$pid" 2>/dev/null && [ "$tenths" -lt 50 ]; do
        sleep 0.1
        tenths=$((tenths + 1))
    done
    kill -KILL "$pid" 2>/dev/null
done
rm -rf "$1"
