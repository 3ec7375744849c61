"""The lab's gateway: small, but with everything a deployment can break."""
