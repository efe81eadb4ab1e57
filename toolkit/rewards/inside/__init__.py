"""What runs inside the sandbox: scripts of the standard library alone, which import no toolkit."""
