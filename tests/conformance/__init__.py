"""What other people's clients and test suites say of a running SAGE: `make conformance`.

No third-party test code lives here; it is fetched from the package registries into build/conformance.
"""
