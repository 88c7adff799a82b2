"""What several test modules share: samples, peers to compare with, small runs, and how numbers are compared."""
