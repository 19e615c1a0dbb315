"""One certificate authority for a test cluster: serving certificates, client certificates, the key of tokens."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
VALID_DAYS = 365
"""Kueue renews what ends within 90 days."""


@dataclass(frozen=True)
class KeyPair:
    """Files of a certificate and its key, both PEM."""

    certificate: Path
    key: Path


class Authority:
    """Signs for one cluster; everything lies in one folder."""

    def __init__(self, folder: Path, names: Sequence[str] = ()) -> None:
        """`names`: host names in the authority's own certificate, by which some programs know theirs."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        # RSA in its old form: Kueue's handling of certificates reads no other authority.
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._name = _name("dapt-test-cluster", [])
        self.file = folder / "ca.crt"
        """The authority's own certificate."""
        builder = (
            _builder(self._name, self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_usage(signs=True), critical=True)
        )
        if names:
            alternatives = x509.SubjectAlternativeName([_host(name) for name in names])
            builder = builder.add_extension(alternatives, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        self._identifier = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        self.key_file = folder / "ca.key"
        """Its private key."""
        self.key_file.write_bytes(_pem(self._key, serialization.PrivateFormat.TraditionalOpenSSL))
        self.key_file.chmod(0o600)

    def serving(self, file_name: str, hosts: Sequence[str]) -> KeyPair:
        """A certificate for a server under these names and addresses."""
        names = [_host(host) for host in hosts]
        return self._issue(file_name, _name(hosts[0], []), [ExtendedKeyUsageOID.SERVER_AUTH], names)

    def client(self, file_name: str, user: str, groups: Sequence[str] = ()) -> KeyPair:
        """A certificate by which a client is this user in these groups."""
        return self._issue(file_name, _name(user, groups), [ExtendedKeyUsageOID.CLIENT_AUTH], [])

    def signing_key(self, file_name: str) -> Path:
        """A private key alone, as service account tokens are signed with."""
        path = self._folder / f"{file_name}.key"
        # The API server reads the public half out of this file too, in this older format alone.
        path.write_bytes(
            _pem(ec.generate_private_key(ec.SECP256R1()), serialization.PrivateFormat.TraditionalOpenSSL)
        )
        return path

    def _issue(
        self,
        file_name: str,
        subject: x509.Name,
        usages: list[x509.ObjectIdentifier],
        names: list[x509.GeneralName],
    ) -> KeyPair:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            _builder(subject, self._name, key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(self._identifier),
                critical=False,
            )
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        pair = KeyPair(self._folder / f"{file_name}.crt", self._folder / f"{file_name}.key")
        pair.certificate.write_bytes(
            builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        )
        pair.key.write_bytes(_pem(key))
        pair.key.chmod(0o600)
        return pair


def _builder(subject: x509.Name, issuer: x509.Name, key: Key) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _name(common_name: str, groups: Sequence[str]) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    return x509.Name([*attributes, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_encipherment=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: Key, private_format: serialization.PrivateFormat = serialization.PrivateFormat.PKCS8) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, private_format, serialization.NoEncryption())
