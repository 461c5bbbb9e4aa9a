"""What a training run reports: metrics, trackers, progress, samples, anomalies."""
