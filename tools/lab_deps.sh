#!/bin/sh
# Installs the real servers and tools that the lab tests run (Debian, root). Returns at once if all are there.
# The tests start their own servers, so none of the packages' services may run: they would occupy ports, and nobody
# asked for them. Meant for CI and for containers: on a machine of your own, chrony replaces systemd-timesyncd.
set -eu

packages="mosquitto coturn chrony nftables iproute2 miniupnpd nginx-light libnginx-mod-stream haproxy squid tinyproxy microsocks systemd
curl iperf3 openssh-client openssh-server postgresql postgresql-client"

missing=""
for package in $packages; do
    case $(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true) in
    installed) ;;
    *) missing="$missing $package" ;;
    esac
done
if [ -z "$missing" ]; then
    echo "lab-deps: all there ($packages)"
    exit 0
fi

if ! command -v apt-get >/dev/null 2>&1; then
    echo "lab-deps: this is not Debian (no apt-get); install by hand:$missing" >&2
    exit 1
fi
if [ "$(id -u)" != 0 ]; then
    echo "lab-deps: needs root to install:$missing" >&2
    exit 1
fi

log=$(mktemp)
made=""
trap 'rm -f "$log" $made' EXIT
trap 'exit 1' HUP INT TERM

# Debian's way to start no service during installation. An existing rule of the machine is left as it is.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    made=$policy
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi

export DEBIAN_FRONTEND=noninteractive
echo "lab-deps: installing$missing"
{
    apt-get -q -o DPkg::Lock::Timeout=120 update
    # shellcheck disable=SC2086 # a list of words
    apt-get -q -y -o DPkg::Lock::Timeout=120 install --no-install-recommends $missing
} </dev/null >"$log" 2>&1 || {
    cat "$log" >&2
    echo "lab-deps: apt-get failed (above)" >&2
    exit 1
}

# If another rule is in force, and after the next boot, systemd would start them all the same.
if [ -d /run/systemd/system ]; then
    for package in $missing; do
        case $package in
        mosquitto | coturn | chrony | miniupnpd | haproxy | squid | tinyproxy | microsocks | postgresql) systemctl --quiet disable --now "$package" || true ;;
        openssh-server) systemctl --quiet disable --now ssh || true ;;
        esac
    done
fi
echo "lab-deps: installed"
