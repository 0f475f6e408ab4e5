"""ROS 2 nodes: the only modules of the project that import rclpy."""
