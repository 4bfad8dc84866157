"""Find the tenant of a request: by its header, and by its API key if `router.tenants` maps keys to tenants."""

import hashlib
import json
import os
from collections.abc import Collection, Mapping

from starlette.responses import JSONResponse
from starlette.types import Scope

from vllm_lora_router.server import asgi
from vllm_lora_router.server.errors import error_body
from vllm_lora_router.server.guard import Access


class TenantRefusedError(Exception):
    """The request's tenant is ambiguous, or is not the one of its API key. The message gives the remedy."""

    def __init__(self, status: int, message: str) -> None:
        self.status, self.message = status, message
        super().__init__(message)

    def response(self, path: str) -> JSONResponse:
        """Return the answer in the form of the API that `path` belongs to."""
        return JSONResponse(error_body(path, self.status, self.message), self.status)


class TenantKeys:
    """A table from API keys to tenants. It contains digests of the keys, never the keys."""

    def __init__(self, tenant_by_key: Mapping[str, str]) -> None:
        self._tenants = {hashlib.sha256(key.encode()).digest(): tenant for key, tenant in tenant_by_key.items()}

    @classmethod
    def from_environment(cls, variable: str) -> "TenantKeys":
        """Read the table from an environment variable.

        Raises:
            ValueError: the variable has no valid table. The message contains no key.
        """
        where = f"router.tenants.keys_env: the environment variable {variable}"
        if not (text := os.environ.get(variable)):
            raise ValueError(f"{where} is not set; set it to a JSON object from API keys to tenants")
        try:
            pairs = json.loads(text, object_pairs_hook=list)
        except ValueError:
            pairs = None
        if not isinstance(pairs, list) or not pairs or not all(isinstance(pair, tuple) for pair in pairs):
            raise ValueError(f'{where} is not a JSON object with an entry; set it to one such as {{"KEY": "acme"}}')
        for number, (key, tenant) in enumerate(pairs, 1):
            if not key or key != key.strip():
                raise ValueError(f"{where}: key {number} is empty or begins or ends with a space; correct it")
            if not isinstance(tenant, str) or not tenant or tenant != tenant.strip() or "," in tenant:
                raise ValueError(
                    f"{where}: the tenant of key {number} must be text without commas and without spaces around it"
                )
        if len(dict(pairs)) < len(pairs):
            raise ValueError(f"{where} contains a key twice; give each key one tenant")
        return cls(dict(pairs))

    def tenant_of(self, scope: Scope) -> str | None:
        """Return the tenant of the request's API key; None if the table does not contain the key."""
        if (key := asgi.bearer_token(scope)) is None:
            return None
        # The digest, not the key, is compared: the time of a lookup tells nothing about a key. vLLM decodes likewise.
        return self._tenants.get(hashlib.sha256(key.decode("latin-1").encode()).digest())

    def tenants_without(self, digests: Collection[bytes]) -> list[str]:
        """Return the tenants that have no key with one of these digests."""
        able = {tenant for digest, tenant in self._tenants.items() if digest in digests}
        return sorted(set(self._tenants.values()) - able)


def with_tenant(scope: Scope, header: bytes | None, keys: TenantKeys | None, access: Access) -> Scope:
    """Return the request's scope, in which the tenant header is the tenant that counts, or is missing.

    All code that needs the tenant reads this header.

    Args:
        header: the header that names the tenant; None: no tenant separation.
        keys: the table of `router.tenants`; None if there is none.

    Raises:
        TenantRefusedError: the headers name several tenants, or another one than the API key's.
    """
    if header is None:
        return scope
    values = [value for name, value in scope["headers"] if name == header]
    if access == "no_key":
        return asgi.without_header(scope, header) if values else scope
    named = _single(values, header)
    if keys is None:
        # Equal values are one. A single one stays as it is.
        return scope if named is None or values == [named] else asgi.with_headers(scope, {header: named})
    tenant = keys.tenant_of(scope)
    expected = b"" if tenant is None else tenant.encode()
    if named and named != expected:
        raise TenantRefusedError(
            403,
            f"the API key of this request does not belong to the tenant that the header {header.decode()} names; send "
            "the tenant's own API key, or remove the header",
        )
    return asgi.with_headers(scope, {header: expected}) if expected else asgi.without_header(scope, header)


def _single(values: list[bytes], header: bytes) -> bytes | None:
    """Return the value that all headers have; None without a header.

    Raises:
        TenantRefusedError: the values differ. Proxies may join several headers with commas.
    """
    if not values:
        return None
    different = {value.strip() for value in b",".join(values).split(b",")}
    if len(different) > 1:
        raise TenantRefusedError(
            400,
            f"the request names several tenants in the header {header.decode()}; send it once, and let the gateway "
            "remove the client's own",
        )
    return different.pop()
