"""The engine for a few hosts that have nothing but sshd: an ssh connection for each worker."""
