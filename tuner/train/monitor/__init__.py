"""What a training says: metrics, trackers, progress, samples, anomalies."""
