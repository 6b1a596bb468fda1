"""Makes certificates: the fleet's authority, its servers', its signing key's and its devices'.

Every certificate has what RFC 5280 asks for and Python 3.13 checks: basic constraints, key usage, and the identifiers
of subject and authority; those of servers and devices also subjectAltName and extendedKeyUsage.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edge_runtime.errors import ConfigError
from edge_runtime.network.http_address import url_host
from edge_runtime.trust.keys import certificate_sha256

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from edge_runtime.trust.keys import PrivateKey, PublicKey

AUTHORITY_DAYS = 20 * 365
SIGNING_DAYS = 10 * 365
SERVER_DAYS = 397
DEVICE_DAYS = 90
_CLOCKS_DIFFER = dt.timedelta(days=1)
"""Certificates begin this long before they are made: a member or a second server may be hours behind."""


@dataclass(frozen=True)
class Authority:
    """A fleet's authority.

    Attributes:
        fleet: the fleet's name.
        certificate: its certificate.
        key: its private key.
    """

    fleet: str
    certificate: x509.Certificate
    key: PrivateKey

    @property
    def sha256(self) -> bytes:
        """SHA-256 of its certificate, which join tokens hold."""
        return certificate_sha256(self.certificate)

    def device(self, name: str, key: PublicKey, now: dt.datetime, days: float = DEVICE_DAYS) -> x509.Certificate:
        """Return a device's certificate: its common name is the device's name, and it is for clients only."""
        names = [x509.UniformResourceIdentifier(f"urn:covey:{self.fleet}:{name}")]
        return self._issue(name, key, names, [ExtendedKeyUsageOID.CLIENT_AUTH], now, days)

    def server(self, hosts: Sequence[str], key: PublicKey, now: dt.datetime) -> x509.Certificate:
        """Return the server's certificate for its host names and addresses; it is a client of the broker too.

        Raises:
            ConfigError: a host can be neither a name nor an address, or there is none.
        """
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        return self._issue(server_name(self.fleet), key, _host_names(hosts), usages, now, SERVER_DAYS)

    def broker(self, hosts: Sequence[str], key: PublicKey, now: dt.datetime) -> x509.Certificate:
        """Return the certificate of a broker that is another program; see server."""
        usages = [ExtendedKeyUsageOID.SERVER_AUTH]
        return self._issue(f"broker:{self.fleet}", key, _host_names(hosts), usages, now, SERVER_DAYS)

    def revoked(self, serials: Collection[str], now: dt.datetime) -> x509.CertificateRevocationList:
        """Return the list of revoked certificates for a broker; it is good for as long as the authority.

        Args:
            serials: their numbers, in hexadecimal digits.
            now: the time.
        """
        authority = self.certificate
        made = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(authority.subject)
            .last_update(max(now - _CLOCKS_DIFFER, authority.not_valid_before_utc))
            .next_update(authority.not_valid_after_utc)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
            .add_extension(x509.CRLNumber(int(now.timestamp())), critical=False)
        )
        for serial in sorted(serials):
            entry = x509.RevokedCertificateBuilder().serial_number(int(serial, 16)).revocation_date(now).build()
            made = made.add_revoked_certificate(entry)
        return made.sign(self.key, hashes.SHA256())

    def signing(self, key: PublicKey, now: dt.datetime) -> x509.Certificate:
        """Return the certificate of the key with which the server signs; no connection can be made with it."""
        names = [x509.UniformResourceIdentifier(f"urn:covey:{self.fleet}")]
        usages = [ExtendedKeyUsageOID.CODE_SIGNING]
        return self._issue(f"signing:{self.fleet}", key, names, usages, now, SIGNING_DAYS)

    def _issue(
        self,
        name: str,
        key: PublicKey,
        names: Sequence[x509.GeneralName],
        usages: Sequence[x509.ObjectIdentifier],
        now: dt.datetime,
        days: float,
    ) -> x509.Certificate:
        begin = max(now - _CLOCKS_DIFFER, self.certificate.not_valid_before_utc)
        end = min(now + dt.timedelta(days=days), self.certificate.not_valid_after_utc)
        if end <= now:
            raise ConfigError(
                f"the authority of fleet {self.fleet} has expired", "make the fleet anew, and let its devices join it"
            )
        return (
            x509.CertificateBuilder()
            .subject_name(_common_name(name))
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(is_authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
            .sign(self.key, hashes.SHA256())
        )


def server_name(fleet: str) -> str:
    """Return the common name of a server's certificate, its user name at a broker; no device's name has a colon."""
    return f"server:{fleet}"[:64]


def make_authority(fleet: str, key: PrivateKey, now: dt.datetime) -> Authority:
    """Return a new authority for a fleet, which signs leaf certificates only (path length 0)."""
    public, name = key.public_key(), _common_name(f"Covey fleet {fleet}")
    begin = now - _CLOCKS_DIFFER
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(now + dt.timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(is_authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(fleet, certificate, key)


def hosts_of(certificate: x509.Certificate) -> list[str]:
    """Return the host names and addresses that a server's certificate is for."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    found = [str(name) for name in names.get_values_for_type(x509.DNSName)]
    return found + [str(address) for address in names.get_values_for_type(x509.IPAddress)]


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _key_usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )


def _host_names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    if not hosts:
        raise ConfigError("the server's certificate needs a host", "covey fleet init --host NAME")
    found: list[x509.GeneralName] = []
    for host in dict.fromkeys(hosts):
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            url_host(host)
            found.append(x509.DNSName(host))
    return found
