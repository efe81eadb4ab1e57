"""What a run did, as a page to read: `report.html`, `report.md`, and runs side by side."""
