#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs a deployment folder for an aarch64 board as a board would: in an unpacked Debian 12 root, chrooted, every process
# emulated and without a network. setup.sh twice (the second time nothing is to do), then run.sh with a prompt as an
# option and on standard input, nq-edge doctor, and a damaged copy, which setup.sh must refuse.
#
#   tests/deploy/emulated_deploy.sh DEPLOYMENT [WORK_FOLDER]      (build/emulated-deploy)
#
# Needs Debian's apt-get and its network, a kernel from 6.7 on with binfmt_misc and user namespaces: the emulator is
# registered in a namespace of its own, so nothing of this machine is changed. qemu-user of Debian 13 is fetched; that of
# Debian 12 crashes in ONNX Runtime. The first run fetches 60 MB; a run takes minutes.
set -euo pipefail
deployment="$(cd "$1" && pwd)"
root="$(cd "$(dirname "$0")/../.." && pwd)"
work="${2:-$root/build/emulated-deploy}"
mkdir -p "$work" && cd "$work" && work="$PWD"

source "$root/tests/debian_packages.sh"
debian "$work" bookworm arm64 machine base-files libc6 libc-bin libgcc-s1 libstdc++6 dash coreutils libacl1 libattr1 \
  libselinux1 libpcre2-8-0 libgmp10 grep sed findutils python3.11 python3.11-minimal libpython3.11-minimal \
  libpython3.11-stdlib python3.11-venv python3-pip-whl python3-setuptools-whl python3 python3-minimal \
  python3-distutils libpython3-stdlib zlib1g libexpat1 libssl3 libffi8 libbz2-1.0 liblzma5 libsqlite3-0 libuuid1 \
  libreadline8 libtinfo6 libncursesw6 libnsl2 libtirpc3 libdb5.3 libgssapi-krb5-2 libkrb5-3 libk5crypto3 \
  libcom-err2 libkrb5support0 libkeyutils1 media-types
debian "$work" trixie amd64 qemu qemu-user

mkdir -p machine/proc machine/sys machine/dev machine/tmp machine/opt
for folder in bin sbin; do
  if [[ ! -L machine/$folder ]]; then
    cp -rn machine/$folder/. machine/usr/$folder/ 2>/dev/null || true
    rm -rf "machine/$folder" && ln -s "usr/$folder" "machine/$folder"
  fi
done
ln -sf dash machine/usr/bin/sh
rm -rf machine/opt/nanoquant-edge
cp -r "$deployment" machine/opt/nanoquant-edge

cat >machine/steps.sh <<'STEPS'
set -eu
cd /opt/nanoquant-edge
now() { date +%s.%N; }
step() { # name, command...
  name=$1
  shift
  begin=$(now)
  "$@"
  python3 -c "print('%s: %.1f s' % ('$name', $(now) - $begin))" >&2
}
uname -m >&2
step "first setup" ./setup.sh
./setup.sh 2>&1 | grep -q "nothing to install"
step "text" ./run.sh --prompt "The capital of France is" -n 8 --json >/tmp/text.json
echo "The capital of France is" >/tmp/prompt
step "text from standard input" ./run.sh -n 4 </tmp/prompt >/tmp/text.txt
step "doctor" ./nq-edge doctor --json >/tmp/doctor.json || true
./build_engine.sh 2>/tmp/engine.txt || true
# A copy that lost a byte is refused, and what was there before still works.
printf x >>bundle/tokenizer.json
if ./setup.sh 2>/tmp/damage.txt; then exit 1; fi
grep -q SHA256SUMS /tmp/damage.txt
STEPS

cat >enter.sh <<'ENTER'
set -e
mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
# ELF header of a 64-bit little-endian aarch64 program, and the bytes of it that count (qemu's scripts/qemu-binfmt-conf.sh).
magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
printf '%s' ":aarch64:M::$magic:$mask:$PWD/qemu/usr/bin/qemu-aarch64:F" >/proc/sys/fs/binfmt_misc/register
mount --bind /proc machine/proc
mount --rbind /sys machine/sys
mount --rbind /dev machine/dev
exec env -i PATH=/usr/bin:/usr/sbin HOME=/tmp LANG=C.UTF-8 QEMU_CPU=neoverse-n1 chroot machine /bin/sh /steps.sh
ENTER
# --net: a network namespace with nothing in it, as a board in the field.
unshare --user --map-root-user --mount --net bash enter.sh
cp machine/tmp/text.json machine/tmp/text.txt machine/tmp/doctor.json .
python3 - "$work/text.json" "$work/doctor.json" <<'END'
import json, sys
found, report = (json.load(open(path)) for path in sys.argv[1:])
assert report["healthy"], [check for check in report["checks"] if check["status"] == "problem"]
assert 1 <= len(found["ids"]) <= 8 and found["kernel"] == "nanoquant", found
print(json.dumps({name: found[name] for name in ("text", "ids", "prefill_tps", "decode_tps", "ttft_s", "peak_memory_mb", "kernel")}))
END
