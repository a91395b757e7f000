"""From predictions to figures: NMS, metrics, protocols, confidence intervals. No networks, no drawing."""
