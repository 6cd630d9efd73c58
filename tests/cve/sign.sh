#!/bin/sh
# Makes signed.tsv: two small zones, signed until 2080, one with NSEC and one with NSEC3 records, as lines of owner, time
# to live, type, and data in hexadecimal; and the trust anchors. Keys are made and thrown away. Needs bind9-utils and
# python3-dnspython.
set -eu
out=$(realpath "$(dirname "$0")")/signed.tsv
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
: >"$out"
for zone in nsec.test nsec3.test; do
	dnssec-keygen -q -a RSASHA256 -b 1024 -f KSK -L 3600 "$zone" >key
	cat >"$zone" <<ZONE
\$TTL 0
@ IN SOA ns.$zone. root.$zone. 1 3600 600 86400 0
@ IN NS ns.$zone.
a IN A 192.0.2.7
d IN A 192.0.2.7
f IN A 192.0.2.8
$(cat "$(cat key).key")
ZONE
	case $zone in nsec3.*) how="-3 -" ;; *) how= ;; esac
	# shellcheck disable=SC2086  # options
	dnssec-signzone -q -z -P $how -s 20200101000000 -e 20800101000000 -o "$zone" "$zone" >/dev/null
	dnssec-dsfromkey -2 "$(cat key).key" | awk '{ print "anchor", $1, $4, $5, $6, $7 }' OFS='\t' >>"$out"
	/usr/bin/python3 - "$zone" >>"$out" <<'PYTHON'
import sys
import dns.zone
zone = dns.zone.from_file(sys.argv[1] + ".signed", origin=sys.argv[1], relativize=False)
for name, ttl, data in sorted(zone.iterate_rdatas(), key=lambda r: (str(r[0]), r[2].rdtype)):
    wire = data.to_wire(origin=zone.origin).hex()
    print(str(name).rstrip(".").lower(), ttl, int(data.rdtype), wire, sep="\t")
PYTHON
done
