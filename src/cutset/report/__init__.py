"""What people and scripts see: JSON documents and tables. Imports no torch."""
